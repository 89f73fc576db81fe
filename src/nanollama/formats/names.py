"""Tensor names: GGUF's to the Hugging Face checkpoint's and back; a parameter has one name inside.

Sources: the GGUF specification's list of standardized tensor names; the state dicts of transformers' models.
Where a family's names differ from the usual ones, its row in ``model/registry.py`` says which.
"""

import re
from collections.abc import Mapping

_MODEL = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "attn_sinks": "self_attn.sinks",
    # The norm in front of the MLP: Llama has no norm behind attention, and calls this one so.
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.gate_proj",
    "ffn_up_exps": "mlp.experts.up_proj",
    "ffn_down_exps": "mlp.experts.down_proj",
}

GEMMA_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
"""Where norms stand behind attention and MLP too."""

OSS_NORMS = {"post_attention_norm": "post_attention_layernorm"}
"""Llama's norms, under the name that Hugging Face gives the second."""

FUSED = {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
"""Where q, k and v are one matrix, and gate and up are one too."""

ROPE_TENSORS = frozenset({"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"})
"""Tensors that configure the rotation: read into the ModelSpec, not parameters of a layer."""

_BLOCK = re.compile(r"blk\.(\d{1,5})\.([a-z_0-9]+)\.(weight|bias)")
_EXPERT = re.compile(r"blk\.(\d{1,5})\.ffn_(gate|up|down)\.(\d{1,4})\.weight")
_TOP = re.compile(r"([a-z_0-9]+)\.(weight|bias)")
_HF_LAYER = re.compile(r"model\.layers\.(\d{1,5})\.([a-z_0-9.]+?)(?:\.(weight|bias))?")
_HF_EXPERT = re.compile(r"mlp\.experts\.\d+\.")


def hf_name(gguf_name: str, names: Mapping[str, str]) -> str | None:
    """The checkpoint name of a GGUF tensor, or ``None`` if no parameter corresponds to it.

    ``names`` are the parts of a layer that the family calls otherwise. Experts lie together in one tensor in
    GGUF files, and get a name without a number.

    >>> hf_name("blk.7.attn_q.weight", {})
    'model.layers.7.self_attn.q_proj.weight'
    """
    if match := _EXPERT.fullmatch(gguf_name):  # files from before experts lay together
        layer, part, expert = match.groups()
        return f"model.layers.{int(layer)}.mlp.experts.{int(expert)}.{part}_proj.weight"
    if match := _BLOCK.fullmatch(gguf_name):
        layer, part, kind = match.groups()
        target = names.get(part) or _LAYER.get(part)
        if target is None:
            return None
        name = f"model.layers.{int(layer)}.{target}"
        return name if target == "self_attn.sinks" else f"{name}.{kind}"
    if (match := _TOP.fullmatch(gguf_name)) and match[1] in _MODEL:
        return f"{_MODEL[match[1]]}.{match[2]}"
    return None


def gguf_name(hf_name: str, names: Mapping[str, str]) -> str | None:
    """The GGUF name of a parameter, or ``None`` if there is none: the inverse of :func:`hf_name`.

    Parameters that share a GGUF tensor get the same name: experts, and what a family stores fused.

    >>> gguf_name("model.layers.7.mlp.experts.3.up_proj.weight", {})
    'blk.7.ffn_up_exps.weight'
    """
    if match := _HF_LAYER.fullmatch(hf_name):
        layer, part, kind = match.groups()
        part = _HF_EXPERT.sub("mlp.experts.", part)
        for whole in names.values():
            if part in FUSED_PARTS.get(whole, ()):
                part = whole
        found = {target: gguf for gguf, target in (_LAYER | dict(names)).items()}.get(part)
        return None if found is None else f"blk.{int(layer)}.{found}.{kind or 'weight'}"
    for gguf, target in _MODEL.items():
        if hf_name in (f"{target}.weight", f"{target}.bias"):
            return gguf + hf_name.removeprefix(target)
    return None


FUSED_PARTS = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
}
"""The parameters that lie one behind the other in a fused matrix."""
