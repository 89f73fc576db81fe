"""The gpt-oss family: experts with clamped gates, attention sinks, biases, each other layer sees a window.

Source: gpt-oss model card (2025) and the released reference implementation.
"""

from nanollama.model.families.config import Config
from nanollama.model.families.experts import experts_of_config, experts_of_gguf
from nanollama.model.families.metadata import Metadata
from nanollama.model.families.rotation import rope_of_config, rope_of_gguf
from nanollama.model.families.shape import Shape
from nanollama.model.families.windows import Windows, pattern, windows_of_config, windows_of_gguf
from nanollama.model.spec import ExpertsSpec, LayerSpec, MlpSpec, ModelSpec, RopeSpec

GLOBAL_EVERY = 2
THETA = 150000.0


def from_gguf(meta: Metadata) -> ModelSpec:
    """Read a ``general.architecture = gpt-oss`` file; raises FormatError or UnsupportedError."""
    shape = Shape.of_gguf(meta, intermediate="expert_feed_forward_length")
    rope = rope_of_gguf(meta, shape.head_dim, theta=THETA, truncate=False)
    windows = windows_of_gguf(meta, GLOBAL_EVERY, shape.num_layers)
    return _decoder(shape, rope, windows, experts_of_gguf(meta, bias=True))


def from_config(config: Config) -> ModelSpec:
    """Read a ``config.json`` of model type gpt_oss; raises like :func:`from_gguf`."""
    config.expect("attention_bias", True)
    config.expect("swiglu_limit", 7.0)
    shape = Shape.of_config(config)
    window = config.size("sliding_window", 128)
    windows = windows_of_config(config, pattern(window, GLOBAL_EVERY, shape.num_layers))
    experts = experts_of_config(config, "num_local_experts", bias=True)
    return _decoder(shape, rope_of_config(config, shape, theta=THETA), windows, experts)


def _decoder(shape: Shape, rope: RopeSpec, windows: Windows, experts: ExpertsSpec | None) -> ModelSpec:
    return shape.decoder(
        "gpt_oss",
        [LayerSpec(rope, window) for window in windows],
        attention=shape.attention(bias=True, output_bias=True, sinks=True),
        mlp=MlpSpec(shape.intermediate_size, "clamped_swiglu", bias=True, experts=experts),
    )
