"""The slowest correct decoder: a language model in a page of PyTorch, and the oracle of every test.

Token ids in, logits for every position out. No cache, no batch, no tricks: each call recomputes everything in
float32. Read it first; ``model/transformer.py`` is the same computation with a cache, a batch and a choice of
backends.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import gelu, silu

from nanollama.model.spec import LayerSpec, ModelSpec, RopeSpec

Parameters = Mapping[str, Tensor]
"""Float32 tensors under their Hugging Face checkpoint names."""


def logits(spec: ModelSpec, params: Parameters, token_ids: Sequence[int]) -> Tensor:
    """Logits ``[n, vocab]`` for the next token after each of the n given ones."""
    x = params["model.embed_tokens.weight"][torch.tensor(token_ids)]  # [n, hidden]
    if spec.embedding_scale is not None:
        x = x * spec.embedding_scale
    for i, layer in enumerate(spec.layers):
        p = f"model.layers.{i}"
        a = attention(spec, layer, params, f"{p}.self_attn", norm(spec, params, f"{p}.input_layernorm", x))
        if spec.norm.post:
            a = norm(spec, params, f"{p}.post_attention_layernorm", a)
        x = x + a
        before = "pre_feedforward_layernorm" if spec.norm.post else "post_attention_layernorm"
        m = mlp(spec, params, f"{p}.mlp", norm(spec, params, f"{p}.{before}", x))
        if spec.norm.post:
            m = norm(spec, params, f"{p}.post_feedforward_layernorm", m)
        x = x + m
    x = norm(spec, params, "model.norm", x)
    head = params["model.embed_tokens.weight" if spec.tied_head else "lm_head.weight"]
    return x @ head.T


def norm(spec: ModelSpec, params: Parameters, name: str, x: Tensor) -> Tensor:
    """RMSNorm: divide by the root of the mean square, then scale each element."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + spec.norm.eps) * params[f"{name}.weight"]


def linear(params: Parameters, name: str, x: Tensor) -> Tensor:
    """``x @ w.T``, plus a bias where the model has one."""
    y = x @ params[f"{name}.weight"].T
    bias = params.get(f"{name}.bias")
    return y if bias is None else y + bias


def rotate(rope: RopeSpec, x: Tensor) -> Tensor:
    """Rotary embedding of ``[n, heads, head_dim]``: turn pair (i, i + dim/2) by position * frequency."""
    angles = torch.outer(torch.arange(len(x), dtype=torch.float32), torch.tensor(rope.frequencies))
    cos = angles.cos()[:, None] * rope.magnitude  # [n, 1, dim / 2]
    sin = angles.sin()[:, None] * rope.magnitude
    left, right, rest = x.split([rope.dim // 2, rope.dim // 2, x.shape[-1] - rope.dim], dim=-1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin, rest], dim=-1)


def attention(spec: ModelSpec, layer: LayerSpec, params: Parameters, name: str, x: Tensor) -> Tensor:
    """Each token looks at itself and the tokens before it; groups of query heads share one key-value head."""
    a, n = spec.attention, len(x)
    q = linear(params, f"{name}.q_proj", x).view(n, a.num_heads, a.head_dim)
    k = linear(params, f"{name}.k_proj", x).view(n, a.num_kv_heads, a.head_dim)
    v = linear(params, f"{name}.v_proj", x).view(n, a.num_kv_heads, a.head_dim)
    if a.qk_norm:
        q, k = norm(spec, params, f"{name}.q_norm", q), norm(spec, params, f"{name}.k_norm", k)
    q, k = rotate(layer.rope, q), rotate(layer.rope, k)

    position = torch.arange(n)
    distance = position[:, None] - position[None, :]  # how far back key j lies from query i
    visible = distance >= 0 if layer.window is None else (distance >= 0) & (distance < layer.window)
    out = torch.empty_like(q)
    for head in range(a.num_heads):
        shared = head * a.num_kv_heads // a.num_heads
        scores = (q[:, head] @ k[:, shared].T) * a.scale  # [n, n]
        weights = scores.masked_fill(~visible, float("-inf")).softmax(dim=-1)
        out[:, head] = weights @ v[:, shared]
    return linear(params, f"{name}.o_proj", out.reshape(n, -1))


def mlp(spec: ModelSpec, params: Parameters, name: str, x: Tensor) -> Tensor:
    """The gated feed-forward layer: one projection decides how much of the other passes."""
    gate, up = linear(params, f"{name}.gate_proj", x), linear(params, f"{name}.up_proj", x)
    gate = silu(gate) if spec.mlp.activation == "silu" else gelu(gate, approximate="tanh")
    return linear(params, f"{name}.down_proj", gate * up)


def greedy(spec: ModelSpec, params: Parameters, token_ids: Sequence[int], n_new: int) -> list[int]:
    """Append the most likely next token ``n_new`` times; the new ids alone."""
    ids = list(token_ids)
    for _ in range(n_new):
        ids.append(int(logits(spec, params, ids)[-1].argmax()))
    return ids[len(token_ids) :]
