"""Attention of one group of a step: queries in, results out, over keys and values of the step or the cache.

Query heads that share a key-value head are treated as further rows of it, so that no kernel has to know of
grouped heads.
"""

import torch
from torch import Tensor
from torch.nn import functional

from nanollama.backends.torch_batch import View
from nanollama.model.spec import AttentionSpec


def softcap(x: Tensor, cap: float) -> Tensor:
    """Nearly ``x`` where that is small, and never more than ``cap``."""
    return cap * torch.tanh(x / cap)


def attend_to_itself(q: Tensor, k: Tensor, v: Tensor, attention: AttentionSpec) -> Tensor:
    """A prompt with nothing in front of it: q ``[n, heads, head_dim]``, k and v with the key-value heads."""
    out = functional.scaled_dot_product_attention(
        q.transpose(0, 1)[None],
        k.transpose(0, 1)[None],
        v.transpose(0, 1)[None],
        is_causal=True,
        scale=attention.scale,
        enable_gqa=True,
    )
    return out[0].transpose(0, 1)


def attend_to_cache(
    q: Tensor, k: Tensor, v: Tensor, view: View, sinks: Tensor | None, attention: AttentionSpec
) -> Tensor:
    """Sequences with something in the cache: q ``[n, heads, head_dim]`` of all of them, one after the other,
    k and v ``[count, kv heads, tokens, head_dim]``."""
    count, kv_heads, _, dim = k.shape
    shared = attention.num_heads // kv_heads
    # [count, kv heads, length, shared, head_dim]
    q = q.view(count, -1, kv_heads, shared, dim).transpose(1, 2)
    rows = q.reshape(count, kv_heads, -1, dim)
    if sinks is None and attention.softcap is None:
        out = functional.scaled_dot_product_attention(rows, k, v, view.mask, scale=attention.scale)
    else:
        out = _attention(rows, k, v, view.mask, sinks, attention)
    return out.view(q.shape).transpose(1, 2).reshape(-1, attention.num_heads, dim)


def _attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, sinks: Tensor | None, attention: AttentionSpec
) -> Tensor:
    """What torch's own attention has no parameter for: soft-capped scores and sinks ``[heads]``."""
    scores = (q @ k.transpose(-1, -2)).float() * attention.scale
    if attention.softcap is not None:
        scores = softcap(scores, attention.softcap)
    scores = scores + mask
    if sinks is not None:
        each = sinks.view(attention.num_kv_heads, -1)  # the heads of each key-value head
        column = each.repeat(1, q.shape[2] // each.shape[1])[..., None]
        scores = torch.cat([scores, column.expand(*scores.shape[:-1], 1)], dim=-1)
    return scores.softmax(dim=-1)[..., : k.shape[2]].to(v.dtype) @ v
