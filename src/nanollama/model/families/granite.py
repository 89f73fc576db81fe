"""The Granite 3 family: Llama with four multipliers, none of which needs an operation of its own.

A sum that adds ``m`` times each block's output is ``m`` times a plain sum that began with the embedding
divided by ``m``. Norms do not see the factor, as long as their epsilon is divided by ``m`` squared.
"""

from nanollama.model.families.config import Config
from nanollama.model.families.metadata import Metadata
from nanollama.model.families.rotation import rope_of_config, rope_of_gguf
from nanollama.model.families.shape import Shape
from nanollama.model.spec import LayerSpec, MlpSpec, ModelSpec, NormSpec, RopeSpec


def from_gguf(meta: Metadata) -> ModelSpec:
    """Read a ``general.architecture = granite`` file; raises FormatError or UnsupportedError."""
    shape = Shape.of_gguf(meta)
    return _decoder(
        shape,
        rope_of_gguf(meta, shape.head_dim),
        attention=meta.number("attention.scale", shape.head_dim**-0.5),
        embedding=meta.number("embedding_scale", 1.0),
        residual=meta.number("residual_scale", 1.0),
        logits=meta.number("logit_scale", 1.0),
    )


def from_config(config: Config) -> ModelSpec:
    """Read a ``config.json`` of model type granite; raises like :func:`from_gguf`."""
    for bias in ("attention_bias", "mlp_bias"):
        config.expect(bias, False)
    shape = Shape.of_config(config)
    return _decoder(
        shape,
        rope_of_config(config, shape),
        attention=config.number("attention_multiplier", 1.0),
        embedding=config.number("embedding_multiplier", 1.0),
        residual=config.number("residual_multiplier", 1.0),
        logits=config.number("logits_scaling", 1.0),
    )


def _decoder(
    shape: Shape, rope: RopeSpec, *, attention: float, embedding: float, residual: float, logits: float
) -> ModelSpec:
    return shape.decoder(
        "granite",
        LayerSpec(rope),
        attention=shape.attention(scale=attention),
        mlp=MlpSpec(shape.intermediate_size),
        norm=NormSpec(shape.eps / residual**2),
        embedding_scale=embedding / residual,
        logit_scale=1 / logits,
    )
