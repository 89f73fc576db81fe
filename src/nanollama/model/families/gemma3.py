"""The Gemma 3 text family: q and k are normed, norms stand on both sides, and layers are local or global.

Source: Gemma 3 technical report (2025). Five layers with a sliding window and a rotary base of 10,000 are
followed by one that sees everything, with the base (and scaling) the file states. Norm weights in Hugging
Face checkpoints lack the 1 that the norm adds; GGUF files have it added.
"""

from nanollama.model import rope
from nanollama.model.families.config import Config
from nanollama.model.families.gemma2 import query_scalar
from nanollama.model.families.metadata import Metadata
from nanollama.model.families.rotation import rope_of_config, rope_of_gguf
from nanollama.model.families.shape import Shape
from nanollama.model.families.windows import Windows, pattern, windows_of_config, windows_of_gguf
from nanollama.model.spec import LayerSpec, MlpSpec, ModelSpec, NormSpec, RopeSpec

GLOBAL_EVERY = 6
LOCAL_THETA = 10000.0
GLOBAL_THETA = 1e6
LAYERS_OF_27B = 62


def from_gguf(meta: Metadata) -> ModelSpec:
    """Read a ``general.architecture = gemma3`` file.

    Raises:
        FormatError: a key is missing or out of range.
        UnsupportedError: the file asks for a rope scaling that is not supported.
    """
    shape = Shape.of_gguf(meta)
    local = RopeSpec(rope.frequencies(meta.number("rope.freq_base_swa", LOCAL_THETA), shape.head_dim))
    windows = windows_of_gguf(meta, GLOBAL_EVERY, shape.num_layers)
    scaled_by = query_scalar(shape, LAYERS_OF_27B)
    return _decoder(shape, local, rope_of_gguf(meta, shape.head_dim), windows, scaled_by)


def from_config(config: Config) -> ModelSpec:
    """Read a ``config.json`` of model type gemma3_text; raises like :func:`from_gguf`."""
    config.expect("use_bidirectional_attention", False)
    for cap in ("attn_logit_softcapping", "final_logit_softcapping"):
        config.expect(cap, None)
    shape = Shape.of_config(config, activation="gelu_pytorch_tanh")
    every = config.size("sliding_window_pattern", GLOBAL_EVERY)
    windows = windows_of_config(config, pattern(config.size("sliding_window"), every, shape.num_layers))
    if config.has("rope_parameters"):
        local = rope_of_config(config, shape, layers="sliding_attention", theta=LOCAL_THETA)
    else:
        theta = config.number("rope_local_base_freq", LOCAL_THETA)
        local = RopeSpec(rope.frequencies(theta, shape.head_dim))
    everywhere = rope_of_config(config, shape, layers="full_attention", theta=GLOBAL_THETA)
    return _decoder(shape, local, everywhere, windows, config.number("query_pre_attn_scalar", 256.0))


def _decoder(
    shape: Shape, local: RopeSpec, everywhere: RopeSpec, windows: Windows, scaled_by: float
) -> ModelSpec:
    return shape.decoder(
        "gemma3",
        [LayerSpec(everywhere if window is None else local, window) for window in windows],
        attention=shape.attention(scale=scaled_by**-0.5, qk_norm="head"),
        mlp=MlpSpec(shape.intermediate_size, activation="gelu_tanh"),
        norm=NormSpec(shape.eps, post=True),
        embedding_scale=shape.hidden_size**0.5,
    )
