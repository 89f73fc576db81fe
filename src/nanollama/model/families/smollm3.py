"""The SmolLM 3 family: Llama whose each fourth layer is not told positions (NoPE, Kazemnejad et al. 2023)."""

from nanollama.model.families.config import Config
from nanollama.model.families.metadata import Metadata
from nanollama.model.families.rotation import rope_of_config, rope_of_gguf
from nanollama.model.families.shape import Shape
from nanollama.model.families.windows import windows_of_config
from nanollama.model.spec import LayerSpec, MlpSpec, ModelSpec

NO_ROPE_EVERY = 4
THETA = 2e6


def from_gguf(meta: Metadata) -> ModelSpec:
    """Read a ``general.architecture = smollm3`` file; raises FormatError or UnsupportedError."""
    shape = Shape.of_gguf(meta)
    rope = rope_of_gguf(meta, shape.head_dim, theta=THETA)
    # GGUF has no key for it: every file follows the released model.
    turned = ((i + 1) % NO_ROPE_EVERY != 0 for i in range(shape.num_layers))
    return shape.decoder("smollm3", [LayerSpec(rope if turn else None) for turn in turned])


def from_config(config: Config) -> ModelSpec:
    """Read a ``config.json`` of model type smollm3; raises like :func:`from_gguf`."""
    shape = Shape.of_config(config)
    n = shape.num_layers
    every = config.size("no_rope_layer_interval", NO_ROPE_EVERY)
    stated = config.choices("no_rope_layers", n, (0, 1))  # 1 is a layer with rope, whatever the name says
    turned = stated or tuple(int((i + 1) % every != 0) for i in range(n))
    window = config.size("sliding_window", 0, minimum=0) or None
    windows = windows_of_config(
        config, tuple(None if turn else window for turn in turned), switch="use_sliding_window"
    )
    rope = rope_of_config(config, shape, theta=THETA)
    biased = config.flag("attention_bias", False)
    return shape.decoder(
        "smollm3",
        [LayerSpec(rope if turn else None, w) for turn, w in zip(turned, windows, strict=True)],
        attention=shape.attention(bias=biased, output_bias=biased),
        mlp=MlpSpec(shape.intermediate_size, bias=config.flag("mlp_bias", False)),
    )
