"""The Gemma 2 family: soft-capped scores and logits, norms on both sides, each other layer sees a window.

Source: Gemma 2 technical report (2024). Norm weights in Hugging Face checkpoints lack the 1 that the norm
adds; GGUF files have it added.
"""

from nanollama.model.families.config import Config
from nanollama.model.families.metadata import Metadata
from nanollama.model.families.rotation import rope_of_config, rope_of_gguf
from nanollama.model.families.shape import Shape
from nanollama.model.families.windows import Windows, pattern, windows_of_config, windows_of_gguf
from nanollama.model.spec import LayerSpec, MlpSpec, ModelSpec, NormSpec, RopeSpec

GLOBAL_EVERY = 2
LAYERS_OF_27B = 46


def from_gguf(meta: Metadata) -> ModelSpec:
    """Read a ``general.architecture = gemma2`` file; raises FormatError or UnsupportedError."""
    shape = Shape.of_gguf(meta)
    return _decoder(
        shape,
        rope_of_gguf(meta, shape.head_dim),
        windows_of_gguf(meta, GLOBAL_EVERY, shape.num_layers),
        scaled_by=query_scalar(shape, LAYERS_OF_27B),
        score_cap=meta.number("attn_logit_softcapping", 50.0),
        logit_cap=meta.number("final_logit_softcapping", 30.0),
    )


def from_config(config: Config) -> ModelSpec:
    """Read a ``config.json`` of model type gemma2; raises like :func:`from_gguf`."""
    shape = Shape.of_config(config, activation="gelu_pytorch_tanh")
    window = config.size("sliding_window", 4096)
    return _decoder(
        shape,
        rope_of_config(config, shape),
        windows_of_config(config, pattern(window, GLOBAL_EVERY, shape.num_layers)),
        scaled_by=config.number("query_pre_attn_scalar", 256.0),
        score_cap=config.optional("attn_logit_softcapping"),
        logit_cap=config.optional("final_logit_softcapping"),
    )


def _decoder(
    shape: Shape,
    rope: RopeSpec,
    windows: Windows,
    *,
    scaled_by: float,
    score_cap: float | None,
    logit_cap: float | None,
) -> ModelSpec:
    return shape.decoder(
        "gemma2",
        [LayerSpec(rope, window) for window in windows],
        attention=shape.attention(scale=scaled_by**-0.5, softcap=score_cap),
        mlp=MlpSpec(shape.intermediate_size, activation="gelu_tanh"),
        norm=NormSpec(shape.eps, post=True),
        embedding_scale=shape.hidden_size**0.5,
        logit_softcap=logit_cap,
    )


def query_scalar(shape: Shape, layers_of_27b: int) -> float:
    """What a GGUF file has no key for: the 27B models alone scale scores by hidden size over heads."""
    largest = shape.num_layers == layers_of_27b
    return shape.hidden_size // shape.num_heads if largest else shape.head_dim
