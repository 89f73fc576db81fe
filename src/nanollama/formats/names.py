"""Tensor names: GGUF's in, the Hugging Face checkpoint's out; a parameter has one name inside.

Sources: the GGUF specification's list of standardized tensor names; the state dicts of transformers' Llama
and Gemma 3.
"""

import re

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
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# The norm in front of the MLP has two names: Llama has no norm behind attention, and calls this one so.
_PRE_NORM = {"ffn_norm": "post_attention_layernorm"}
_POST_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}

ROPE_TENSORS = frozenset({"rope_freqs.weight"})
"""Tensors that configure the rotation: read into the ModelSpec, not parameters of a layer."""

_BLOCK = re.compile(r"blk\.(\d{1,5})\.([a-z_0-9]+)\.(weight|bias)")
_TOP = re.compile(r"([a-z_0-9]+)\.(weight|bias)")


def hf_name(gguf_name: str, *, post_norms: bool) -> str | None:
    """The checkpoint name of a GGUF tensor, or ``None`` if no parameter corresponds to it.

    >>> hf_name("blk.7.attn_q.weight", post_norms=False)
    'model.layers.7.self_attn.q_proj.weight'
    """
    if match := _BLOCK.fullmatch(gguf_name):
        layer, part, kind = match.groups()
        norms = _POST_NORMS if post_norms else _PRE_NORM
        target = _LAYER.get(part) or norms.get(part)
        return f"model.layers.{int(layer)}.{target}.{kind}" if target else None
    if (match := _TOP.fullmatch(gguf_name)) and match[1] in _MODEL:
        return f"{_MODEL[match[1]]}.{match[2]}"
    return None
