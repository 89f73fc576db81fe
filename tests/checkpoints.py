"""Toy checkpoints of every architecture, made by transformers: random weights, odd sizes, grouped heads.

transformers is the oracle: it writes the folder that we open, and it says what the logits are.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from safetensors.numpy import load_file

from nanollama.model.checkpoint import PackedTensor
from nanollama.model.families.config import Config
from nanollama.model.registry import family_of_config
from nanollama.model.spec import ModelSpec
from toys import packed

VOCAB = 61
WINDOW = 7

BASE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 72,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
    "tie_word_embeddings": False,
    "attn_implementation": "eager",
}
TIED = {"tie_word_embeddings": True}
EXPERTS = {"num_experts_per_tok": 2}


def rope(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **more}}


LLAMA3 = rope(
    "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64
)
LONGROPE = rope(
    "longrope",
    short_factor=[1.0, 1.5, 2.0],
    long_factor=[2.0, 4.0, 8.0],
    original_max_position_embeddings=64,
    partial_rotary_factor=0.75,
)
YARN = rope("yarn", factor=4.0, original_max_position_embeddings=64)

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"head_dim": 10}),
    "llama tied, llama3 rope": ("Llama", {**TIED, **LLAMA3}),
    "llama with biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, linear rope": ("Llama", rope("linear", factor=4.0)),
    "llama, dynamic rope": ("Llama", {"max_position_embeddings": 64, **rope("dynamic", factor=2.0)}),
    "llama, yarn": ("Llama", YARN),
    "llama, weighed yarn": (
        "Llama",
        rope("yarn", factor=4.0, original_max_position_embeddings=64, mscale=0.7, mscale_all_dim=1.0),
    ),
    "mistral": ("Mistral", {"sliding_window": WINDOW}),
    "mistral without a window": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {**TIED}),
    "qwen2 with windows": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "qwen3 tied": ("Qwen3", {"head_dim": 10, **TIED}),
    "qwen3_moe": (
        "Qwen3Moe",
        {"head_dim": 16, "num_experts": 5, "moe_intermediate_size": 24, "norm_topk_prob": True, **EXPERTS},
    ),
    "qwen3_moe, not normalized": (
        "Qwen3Moe",
        {"head_dim": 8, "num_experts": 4, "moe_intermediate_size": 24, "norm_topk_prob": False, **EXPERTS},
    ),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "sliding_window": None, **EXPERTS}),
    "gemma2": (
        "Gemma2",
        {
            "head_dim": 10,
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 10,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
            **TIED,
        },
    ),
    "gemma2 of another scale": (
        "Gemma2",
        {"head_dim": 10, "sliding_window": WINDOW, "query_pre_attn_scalar": 14, **TIED},
    ),
    "gemma3": (
        "Gemma3",
        {
            "head_dim": 10,
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 10,
            "num_hidden_layers": 7,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            },
            **TIED,
        },
    ),
    "phi3": ("Phi3", {"original_max_position_embeddings": 64, **rope("default")}),
    "phi3, longrope": ("Phi3", {"original_max_position_embeddings": 64, **LONGROPE}),
    "phi3 with a window": ("Phi3", {"sliding_window": WINDOW, **TIED, **rope("default")}),
    "granite": (
        "Granite",
        {
            "embedding_multiplier": 6.0,
            "attention_multiplier": 0.2,
            "residual_multiplier": 0.4,
            "logits_scaling": 4.0,
            **TIED,
        },
    ),
    "olmo2": ("Olmo2", {}),
    "smollm3": ("SmolLM3", {"num_hidden_layers": 5, **TIED}),
    "smollm3 untied": ("SmolLM3", {"num_hidden_layers": 4}),
    "gpt_oss": (
        "GptOss",
        {
            "head_dim": 8,
            "num_hidden_layers": 4,
            "num_local_experts": 4,
            "sliding_window": WINDOW,
            **rope("yarn", factor=4.0, original_max_position_embeddings=64, truncate=False),
            **EXPERTS,
        },
    ),
}
"""Name of a case: transformers' name of the architecture, and what its configuration adds to BASE."""


@dataclass(frozen=True)
class Saved:
    """One toy: transformers' model, and the folder's ``config.json`` and tensors as they lie on the disk."""

    model: transformers.PreTrainedModel
    config: dict[str, Any]
    arrays: dict[str, NDArray[np.float32]]
    folder: Path

    def logits(self, ids: tuple[int, ...]) -> NDArray[np.float32]:
        with torch.inference_mode():
            return self.model(torch.tensor([ids])).logits[0].float().numpy()


def make(case: str, folder: Path) -> Saved:
    """Save a toy of one of CASES to ``folder``."""
    name, settings = CASES[case]
    text = "Text" if name == "Gemma3" else ""
    config = getattr(transformers, f"{name}{text}Config")(**(BASE | settings))
    torch.manual_seed(sum(map(ord, case)))
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            spread = 0.2 if parameter.ndim == 1 else 1.5 * parameter.shape[-1] ** -0.5
            around = 1.0 if "norm" in parameter_name and "gemma" not in case else 0.0
            parameter.copy_(around + spread * torch.randn_like(parameter))
    assert sum(p.numel() for p in model.parameters()) < 300_000
    model.save_pretrained(folder)
    values = json.loads((folder / "config.json").read_text())
    return Saved(model, values, load_file(folder / "model.safetensors"), folder)


def opened(
    config: Mapping[str, Any], arrays: Mapping[str, NDArray[np.float32]]
) -> tuple[ModelSpec, dict[str, PackedTensor]]:
    """The spec and parameters of a folder's contents."""
    family = family_of_config(config)
    spec = family.from_config(Config(config, arrays.__contains__))
    tensors = {name: packed(name, array) for name, array in arrays.items()}
    return spec, family.folder_parameters(spec, tensors)
