"""The recipe: what a decoder does, written once for every architecture and device.

Parameters and an ``Ops`` in, logits out. Which norms, heads and rotations a model has is read off its
ModelSpec; how a step is computed is the backend's business. ``reference.py`` is the same computation without
any of the machinery.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from nanollama.backends.ops import Ops
from nanollama.model.spec import LayerSpec, ModelSpec

Tensor = TypeVar("Tensor")
Weight = TypeVar("Weight")


@dataclass(frozen=True, slots=True)
class LayerWeights(Generic[Weight]):
    """One decoder layer's parameters as a backend packed them; ``None`` where the model has none.

    ``qkv`` and ``gate_up`` are merged: their matrices multiply the same input. Where there is a ``router``,
    ``gate_up`` and ``down`` hold those of all experts.
    """

    input_norm: Weight | None
    qkv: Weight
    q_norm: Weight | None
    k_norm: Weight | None
    sinks: Weight | None
    o: Weight
    post_attention_norm: Weight | None
    mlp_norm: Weight | None
    router: Weight | None
    gate_up: Weight
    down: Weight
    post_mlp_norm: Weight | None


@dataclass(frozen=True, slots=True)
class ModelWeights(Generic[Weight]):
    """All parameters of a model. ``head``, the output matrix, is ``embedding`` again in a tied model."""

    embedding: Weight
    layers: Sequence[LayerWeights[Weight]]
    norm: Weight
    head: Weight


def forward(
    ops: Ops[Tensor, Weight],
    spec: ModelSpec,
    weights: ModelWeights[Weight],
    run_layer: Callable[..., Tensor] | None = None,
) -> Tensor:
    """Run one step over the tokens that ``ops`` holds; the logits ``[logit rows, vocab]``.

    ``run_layer`` stands in for :func:`decoder_layer`, as where that was compiled.
    """
    run_layer = run_layer or decoder_layer
    x = ops.embed(weights.embedding, spec.embedding_scale)
    for index, (layer, w) in enumerate(zip(spec.layers, weights.layers, strict=True)):
        x = run_layer(ops, spec, layer, w, x, index)
    # Only the rows that will be sampled go through the output matrix: it is the largest of the model.
    x = ops.rms_norm(ops.logit_rows(x), weights.norm, spec.norm.eps)
    (logits,) = ops.linear(x, weights.head)
    return logits if spec.logit_softcap is None else ops.softcap(logits, spec.logit_softcap)


def decoder_layer(
    ops: Ops[Tensor, Weight],
    spec: ModelSpec,
    layer: LayerSpec,
    w: LayerWeights[Weight],
    x: Tensor,
    index: int,
) -> Tensor:
    """One layer: the residual stream ``x`` ``[n, hidden]`` in and out."""
    eps = spec.norm.eps
    a = _attention(ops, spec, layer, w, _normed(ops, x, w.input_norm, eps), index)
    x = ops.add(x, _normed(ops, a, w.post_attention_norm, eps))
    m = _mlp(ops, spec, w, _normed(ops, x, w.mlp_norm, eps))
    return ops.add(x, _normed(ops, m, w.post_mlp_norm, eps))


def _normed(ops: Ops[Tensor, Weight], x: Tensor, weight: Weight | None, eps: float) -> Tensor:
    return x if weight is None else ops.rms_norm(x, weight, eps)


def _attention(
    ops: Ops[Tensor, Weight],
    spec: ModelSpec,
    layer: LayerSpec,
    w: LayerWeights[Weight],
    h: Tensor,
    index: int,
) -> Tensor:
    q, k, v = ops.linear(h, w.qkv)
    q = _normed(ops, q, w.q_norm, spec.norm.eps)
    k = _normed(ops, k, w.k_norm, spec.norm.eps)
    if layer.rope is not None:
        q = ops.rope(q, layer.rope, spec.attention.head_dim)
        k = ops.rope(k, layer.rope, spec.attention.head_dim)
    (out,) = ops.linear(ops.attend(q, k, v, w.sinks, index, layer, spec.attention), w.o)
    return out


def _mlp(ops: Ops[Tensor, Weight], spec: ModelSpec, w: LayerWeights[Weight], h: Tensor) -> Tensor:
    if w.router is not None and spec.mlp.experts is not None:
        (scores,) = ops.linear(h, w.router)
        return ops.experts(h, scores, w.gate_up, w.down, spec.mlp.activation, spec.mlp.experts)
    gate, up = ops.linear(h, w.gate_up)
    (out,) = ops.linear(ops.gated(gate, up, spec.mlp.activation), w.down)
    return out
