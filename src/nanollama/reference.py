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
    before, behind = spec.norm.before, spec.norm.behind
    for i, layer in enumerate(spec.layers):
        p = f"model.layers.{i}"
        h = norm(spec, params, f"{p}.{before[0]}", x) if before else x
        a = attention(spec, layer, params, f"{p}.self_attn", h)
        x = x + (norm(spec, params, f"{p}.{behind[0]}", a) if behind else a)
        h = norm(spec, params, f"{p}.{before[1]}", x) if before else x
        m = (
            mlp(spec, params, f"{p}.mlp", h)
            if spec.mlp.experts is None
            else experts(spec, params, f"{p}.mlp", h)
        )
        x = x + (norm(spec, params, f"{p}.{behind[1]}", m) if behind else m)
    x = norm(spec, params, "model.norm", x)
    head = params["model.embed_tokens.weight" if spec.tied_head else "lm_head.weight"]
    x = x @ head.T
    if spec.logit_scale is not None:
        x = x * spec.logit_scale
    return x if spec.logit_softcap is None else softcap(x, spec.logit_softcap)


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
    q, k, v = (linear(params, f"{name}.{part}_proj", x) for part in "qkv")
    if a.qk_norm == "row":
        q, k = norm(spec, params, f"{name}.q_norm", q), norm(spec, params, f"{name}.k_norm", k)
    q, k, v = q.view(n, -1, a.head_dim), k.view(n, -1, a.head_dim), v.view(n, -1, a.head_dim)
    if a.qk_norm == "head":
        q, k = norm(spec, params, f"{name}.q_norm", q), norm(spec, params, f"{name}.k_norm", k)
    if layer.rope is not None:
        q, k = rotate(layer.rope, q), rotate(layer.rope, k)

    position = torch.arange(n)
    distance = position[:, None] - position[None, :]  # how far back key j lies from query i
    visible = distance >= 0 if layer.window is None else (distance >= 0) & (distance < layer.window)
    out = torch.empty_like(q)
    for head in range(a.num_heads):
        shared = head * a.num_kv_heads // a.num_heads
        scores = (q[:, head] @ k[:, shared].T) * a.scale  # [n, n]
        if a.softcap is not None:
            scores = softcap(scores, a.softcap)
        scores = scores.masked_fill(~visible, float("-inf"))
        if a.sinks:  # one more column takes its share of the softmax, and has no value
            scores = torch.cat([scores, params[f"{name}.sinks"][head].expand(n, 1)], dim=-1)
        out[:, head] = scores.softmax(dim=-1)[:, :n] @ v[:, shared]
    return linear(params, f"{name}.o_proj", out.reshape(n, -1))


def softcap(x: Tensor, cap: float) -> Tensor:
    """Nearly ``x`` where that is small, and never more than ``cap``."""
    return cap * torch.tanh(x / cap)


def mlp(spec: ModelSpec, params: Parameters, name: str, x: Tensor) -> Tensor:
    """The gated feed-forward layer: one projection decides how much of the other passes."""
    gate, up = linear(params, f"{name}.gate_proj", x), linear(params, f"{name}.up_proj", x)
    if spec.mlp.activation == "clamped_swiglu":
        gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0) + 1
        gate = gate * torch.sigmoid(1.702 * gate)
    else:
        gate = silu(gate) if spec.mlp.activation == "silu" else gelu(gate, approximate="tanh")
    return linear(params, f"{name}.down_proj", gate * up)


def experts(spec: ModelSpec, params: Parameters, name: str, x: Tensor) -> Tensor:
    """A mixture of MLPs: a router scores them, and each token takes the weighted sum of its best ones."""
    e = spec.mlp.experts
    assert e is not None, "called for layers with experts"
    scores = linear(params, f"{name}.gate", x)  # [n, experts]
    out = torch.zeros_like(x)
    for row, token in enumerate(x):
        best, chosen = scores[row].topk(e.per_token)
        shares = best.softmax(-1) if e.normalized else scores[row].softmax(-1)[chosen]
        for share, i in zip(shares, chosen.tolist(), strict=True):
            out[row] += share * mlp(spec, params, f"{name}.experts.{i}", token)
    return out


def greedy(spec: ModelSpec, params: Parameters, token_ids: Sequence[int], n_new: int) -> list[int]:
    """Append the most likely next token ``n_new`` times; the new ids alone."""
    ids = list(token_ids)
    for _ in range(n_new):
        ids.append(int(logits(spec, params, ids)[-1].argmax()))
    return ids[len(token_ids) :]
