"""The Phi 3 and 4 family: Llama with merged q/k/v and gate/up, a part of each head rotated, and LongRoPE."""

from nanollama.model.families.config import Config
from nanollama.model.families.metadata import Metadata
from nanollama.model.families.rotation import rope_of_config, rope_of_gguf
from nanollama.model.families.shape import Shape
from nanollama.model.spec import LayerSpec, ModelSpec


def from_gguf(meta: Metadata) -> ModelSpec:
    """Read a ``general.architecture = phi3`` file; raises FormatError or UnsupportedError."""
    shape = Shape.of_gguf(meta)
    window = meta.size("attention.sliding_window", 0, minimum=0) or None
    return shape.decoder("phi3", LayerSpec(rope_of_gguf(meta, shape.head_dim), window))


def from_config(config: Config) -> ModelSpec:
    """Read a ``config.json`` of model type phi3; raises like :func:`from_gguf`."""
    shape = Shape.of_config(config)
    window = config.size("sliding_window", 0, minimum=0) or None
    return shape.decoder("phi3", LayerSpec(rope_of_config(config, shape), window))
