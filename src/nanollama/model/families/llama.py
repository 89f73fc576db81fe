"""The Llama family: Llama 2 and 3, TinyLlama, SmolLM2, Mistral and, with experts, Mixtral."""

from nanollama.model.families.config import Config
from nanollama.model.families.experts import experts_of_config, experts_of_gguf
from nanollama.model.families.metadata import Metadata
from nanollama.model.families.rotation import THETA, rope_of_config, rope_of_gguf
from nanollama.model.families.shape import Shape
from nanollama.model.spec import LayerSpec, MlpSpec, ModelSpec

MIXTRAL_THETA = 1e6
"""The rotary base of configurations with experts that state none."""


def from_gguf(meta: Metadata) -> ModelSpec:
    """Read a ``general.architecture = llama`` file.

    Raises:
        FormatError: a key is missing or out of range.
        UnsupportedError: the file uses a variant of the family that is not supported.
    """
    shape = Shape.of_gguf(meta)
    window = meta.size("attention.sliding_window", 0, minimum=0) or None
    return shape.decoder(
        "llama",
        LayerSpec(rope_of_gguf(meta, shape.head_dim), window),
        attention=shape.attention(
            bias=meta.has_tensor("blk.0.attn_q.bias"), output_bias=meta.has_tensor("blk.0.attn_output.bias")
        ),
        mlp=MlpSpec(
            shape.intermediate_size,
            bias=meta.has_tensor("blk.0.ffn_down.bias"),
            experts=experts_of_gguf(meta),
        ),
    )


def from_config(config: Config) -> ModelSpec:
    """Read a ``config.json`` of model type llama, mistral or mixtral; raises like :func:`from_gguf`."""
    shape = Shape.of_config(config)
    experts = experts_of_config(config, "num_local_experts")
    rope = rope_of_config(config, shape, theta=THETA if experts is None else MIXTRAL_THETA)
    biased = config.flag("attention_bias", False)
    return shape.decoder(
        "llama",
        LayerSpec(rope, config.size("sliding_window", 0, minimum=0) or None),
        attention=shape.attention(bias=biased, output_bias=biased),
        mlp=MlpSpec(shape.intermediate_size, bias=config.flag("mlp_bias", False), experts=experts),
    )
