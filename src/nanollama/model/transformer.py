"""The recipe: what a decoder does, written once for every architecture and device.

Parameters and an ``Ops`` in, logits out. Which norms, heads and rotations a model has is read off its
ModelSpec; how a step is computed is the backend's business. ``reference.py`` is the same computation without
any of the machinery.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from nanollama.backends.ops import Ops
from nanollama.model.spec import LayerSpec, ModelSpec

Tensor = TypeVar("Tensor")
Weight = TypeVar("Weight")


@dataclass(frozen=True, slots=True)
class LayerWeights(Generic[Weight]):
    """One decoder layer's parameters as a backend packed them; ``None`` where the model has none.

    ``qkv`` and ``gate_up`` are merged: their matrices multiply the same input.
    """

    input_norm: Weight
    qkv: Weight
    q_norm: Weight | None
    k_norm: Weight | None
    o: Weight
    post_attention_norm: Weight | None
    mlp_norm: Weight
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


def forward(ops: Ops[Tensor, Weight], spec: ModelSpec, weights: ModelWeights[Weight]) -> Tensor:
    """Run one step over the tokens that ``ops`` holds; the logits ``[logit rows, vocab]``."""
    x = ops.embed(weights.embedding, spec.embedding_scale)
    for index, (layer, w) in enumerate(zip(spec.layers, weights.layers, strict=True)):
        a = _attention(ops, spec, layer, w, ops.rms_norm(x, w.input_norm, spec.norm.eps), index)
        if w.post_attention_norm is not None:
            a = ops.rms_norm(a, w.post_attention_norm, spec.norm.eps)
        x = ops.add(x, a)

        m = _mlp(ops, spec, w, ops.rms_norm(x, w.mlp_norm, spec.norm.eps))
        if w.post_mlp_norm is not None:
            m = ops.rms_norm(m, w.post_mlp_norm, spec.norm.eps)
        x = ops.add(x, m)
    # Only the rows that will be sampled go through the output matrix: it is the largest of the model.
    x = ops.rms_norm(ops.logit_rows(x), weights.norm, spec.norm.eps)
    (logits,) = ops.linear(x, weights.head)
    return logits


def _attention(
    ops: Ops[Tensor, Weight],
    spec: ModelSpec,
    layer: LayerSpec,
    w: LayerWeights[Weight],
    h: Tensor,
    index: int,
) -> Tensor:
    q, k, v = ops.linear(h, w.qkv)
    if w.q_norm is not None and w.k_norm is not None:
        q = ops.rms_norm(q, w.q_norm, spec.norm.eps)
        k = ops.rms_norm(k, w.k_norm, spec.norm.eps)
    q = ops.rope(q, layer, spec.attention.head_dim)
    k = ops.rope(k, layer, spec.attention.head_dim)
    (out,) = ops.linear(ops.attend(q, k, v, index, layer, spec.attention), w.o)
    return out


def _mlp(ops: Ops[Tensor, Weight], spec: ModelSpec, w: LayerWeights[Weight], h: Tensor) -> Tensor:
    gate, up = ops.linear(h, w.gate_up)
    (out,) = ops.linear(ops.gated(gate, up, spec.mlp.activation), w.down)
    return out
