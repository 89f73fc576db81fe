"""The Qwen 3 family, dense and with experts: q and k are normed head by head, and there are no biases."""

from nanollama.errors import UnsupportedError
from nanollama.model.families.config import Config
from nanollama.model.families.experts import experts_of_config, experts_of_gguf
from nanollama.model.families.metadata import Metadata
from nanollama.model.families.qwen2 import qwen_windows
from nanollama.model.families.rotation import rope_of_config, rope_of_gguf
from nanollama.model.families.shape import Shape
from nanollama.model.spec import LayerSpec, MlpSpec, ModelSpec


def from_gguf(meta: Metadata) -> ModelSpec:
    """Read a ``general.architecture`` qwen3 or qwen3moe file; raises FormatError or UnsupportedError."""
    experts = experts_of_gguf(meta)
    size = "feed_forward_length" if experts is None else "expert_feed_forward_length"
    shape = Shape.of_gguf(meta, intermediate=size)
    return shape.decoder(
        "qwen3",
        LayerSpec(rope_of_gguf(meta, shape.head_dim)),
        attention=shape.attention(qk_norm="head"),
        mlp=MlpSpec(shape.intermediate_size, experts=experts),
    )


def from_config(config: Config) -> ModelSpec:
    """Read a ``config.json`` of model type qwen3 or qwen3_moe; raises like :func:`from_gguf`."""
    normalized = config.flag("norm_topk_prob", False)
    # transformers 5 saves the count under its own name for it.
    key = "num_experts" if config.has("num_experts") else "num_local_experts"
    experts = experts_of_config(config, key, normalized=normalized)
    mixed = config.values.get("mlp_only_layers") or config.size("decoder_sparse_step", 1) > 1
    if experts is not None and mixed:
        raise UnsupportedError("this model has experts in some of its layers only, which is not supported")
    size = "intermediate_size" if experts is None else "moe_intermediate_size"
    shape = Shape.of_config(config, intermediate=size)
    rope = rope_of_config(config, shape)
    biased = config.flag("attention_bias", False)
    return shape.decoder(
        "qwen3",
        [LayerSpec(rope, window) for window in qwen_windows(config, shape.num_layers)],
        attention=shape.attention(qk_norm="head", bias=biased, output_bias=biased),
        mlp=MlpSpec(shape.intermediate_size, experts=experts),
    )
