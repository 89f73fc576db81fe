"""The OLMo 2 family: norms stand behind attention and MLP only, and q and k are normed as whole rows."""

from nanollama.model.families.config import Config
from nanollama.model.families.metadata import Metadata
from nanollama.model.families.rotation import rope_of_config, rope_of_gguf
from nanollama.model.families.shape import Shape
from nanollama.model.spec import LayerSpec, ModelSpec, NormSpec, RopeSpec


def from_gguf(meta: Metadata) -> ModelSpec:
    """Read a ``general.architecture = olmo2`` file; raises FormatError or UnsupportedError."""
    shape = Shape.of_gguf(meta)
    return _decoder(shape, rope_of_gguf(meta, shape.head_dim))


def from_config(config: Config) -> ModelSpec:
    """Read a ``config.json`` of model type olmo2; raises like :func:`from_gguf`."""
    config.expect("attention_bias", False)
    shape = Shape.of_config(config)
    return _decoder(shape, rope_of_config(config, shape))


def _decoder(shape: Shape, rope: RopeSpec) -> ModelSpec:
    return shape.decoder(
        "olmo2",
        LayerSpec(rope),
        attention=shape.attention(qk_norm="row"),
        norm=NormSpec(shape.eps, pre=False, post=True),
    )
