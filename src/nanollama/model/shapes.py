"""The shapes of famous models without their weights: a name in, its configuration and ModelSpec out.

The values are those of each model's published ``config.json`` (of Gemma 3 4B: of its text part) and go the
same way as a file's: through the family.
"""

from collections.abc import Mapping
from typing import Any

from nanollama.errors import UsageError
from nanollama.model.families.config import Config
from nanollama.model.registry import family_of_config
from nanollama.model.spec import ModelSpec

TIED = {"tie_word_embeddings": True}
UNTIED = {"tie_word_embeddings": False}


def _sizes(
    hidden: int, inner: int, layers: int, heads: int, kv_heads: int, vocab: int, context: int
) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "max_position_embeddings": context,
    }


def _llama3(factor: float) -> dict[str, Any]:
    scaling = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    return {"model_type": "llama", "rms_norm_eps": 1e-5, "rope_theta": 5e5, "rope_scaling": scaling}


def _llama(theta: float, model_type: str = "llama") -> dict[str, Any]:
    return {"model_type": model_type, "rms_norm_eps": 1e-5, "rope_theta": theta}


def _qwen(model_type: str, theta: float = 1e6) -> dict[str, Any]:
    return {"model_type": model_type, "rms_norm_eps": 1e-6, "rope_theta": theta, "use_sliding_window": False}


def _gemma3(window: int) -> dict[str, Any]:
    return {
        "model_type": "gemma3_text",
        "head_dim": 256,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "query_pre_attn_scalar": 256,
        "sliding_window": window,
        "sliding_window_pattern": 6,
        **TIED,
    }


_QWEN3 = {**_qwen("qwen3"), "head_dim": 128}
_EXPERTS = {
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
}

SHAPES: dict[str, Mapping[str, Any]] = {
    "llama-3.1-8b": {**_llama3(8.0), **_sizes(4096, 14336, 32, 32, 8, 128256, 131072), **UNTIED},
    "llama-3.2-1b": {**_llama3(32.0), **_sizes(2048, 8192, 16, 32, 8, 128256, 131072), **TIED},
    "llama-3.2-3b": {**_llama3(32.0), **_sizes(3072, 8192, 28, 24, 8, 128256, 131072), **TIED},
    "qwen3-0.6b": {**_QWEN3, **_sizes(1024, 3072, 28, 16, 8, 151936, 40960), **TIED},
    "qwen3-8b": {**_QWEN3, **_sizes(4096, 12288, 36, 32, 8, 151936, 40960), **UNTIED},
    "qwen3-30b-a3b": {
        **_QWEN3,
        **_EXPERTS,
        **_sizes(2048, 6144, 48, 32, 4, 151936, 40960),
        **UNTIED,
        "model_type": "qwen3_moe",
    },
    "qwen2.5-1.5b": {**_qwen("qwen2"), **_sizes(1536, 8960, 28, 12, 2, 151936, 32768), **TIED},
    "deepseek-r1-1.5b": {**_qwen("qwen2", 1e4), **_sizes(1536, 8960, 28, 12, 2, 151936, 131072), **UNTIED},
    "tinyllama-1.1b": {**_llama(1e4), **_sizes(2048, 5632, 22, 32, 4, 32000, 2048), **UNTIED},
    "smollm2-135m": {**_llama(1e5), **_sizes(576, 1536, 30, 9, 3, 49152, 8192), **TIED},
    "smollm2-1.7b": {**_llama(1.3e5), **_sizes(2048, 8192, 24, 32, 32, 49152, 8192), **TIED},
    "mistral-7b": {**_llama(1e6, "mistral"), **_sizes(4096, 14336, 32, 32, 8, 32768, 32768), **UNTIED},
    "gemma3-270m": {**_gemma3(512), **_sizes(640, 2048, 18, 4, 1, 262144, 32768)},
    "gemma3-1b": {**_gemma3(512), **_sizes(1152, 6912, 26, 4, 1, 262144, 32768)},
    "gemma3-4b": {
        **_gemma3(1024),
        **_sizes(2560, 10240, 34, 8, 4, 262208, 131072),
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    },
    "phi3-mini": {
        **_llama(1e4, "phi3"),
        **_sizes(3072, 8192, 32, 32, 32, 32064, 4096),
        **UNTIED,
        "original_max_position_embeddings": 4096,
        "sliding_window": 2047,
    },
}


def shape_config(name: str) -> Config:
    """The configuration of a shape, as if its checkpoint lay in a folder; UsageError for an unknown name."""
    if name not in SHAPES:
        raise UsageError(f"the shape {name!r} is not known; known are {', '.join(SHAPES)}")
    return Config(SHAPES[name], has_tensor=lambda _: False)


def shape_spec(name: str) -> ModelSpec:
    """The ModelSpec of a shape; UsageError for an unknown name."""
    config = shape_config(name)
    return family_of_config(config.values).from_config(config)
