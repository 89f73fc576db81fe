"""The Qwen 2 and 2.5 family, and the DeepSeek-R1 distils of it: Llama with biases on q, k and v."""

from nanollama.model.families.config import Config
from nanollama.model.families.metadata import Metadata
from nanollama.model.families.rotation import rope_of_config, rope_of_gguf
from nanollama.model.families.shape import Shape
from nanollama.model.families.windows import Windows, windows_of_config
from nanollama.model.spec import LayerSpec, ModelSpec


def from_gguf(meta: Metadata) -> ModelSpec:
    """Read a ``general.architecture = qwen2`` file; raises FormatError or UnsupportedError."""
    shape = Shape.of_gguf(meta)
    layer = LayerSpec(rope_of_gguf(meta, shape.head_dim))
    return shape.decoder("qwen2", layer, attention=shape.attention(bias=True))


def from_config(config: Config) -> ModelSpec:
    """Read a ``config.json`` of model type qwen2; raises like :func:`from_gguf`."""
    shape = Shape.of_config(config)
    rope = rope_of_config(config, shape)
    layers = [LayerSpec(rope, window) for window in qwen_windows(config, shape.num_layers)]
    return shape.decoder("qwen2", layers, attention=shape.attention(bias=True))


def qwen_windows(config: Config, num_layers: int) -> Windows:
    """Qwen's windows, where they are switched on: the layers from ``max_window_layers`` upwards."""
    first = config.size("max_window_layers", 28, minimum=0)
    window = config.size("sliding_window", 0, minimum=0) or None
    default = tuple(window if i >= first else None for i in range(num_layers))
    return windows_of_config(config, default, switch="use_sliding_window")
