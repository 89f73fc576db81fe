"""The native ops: each call of the recipe appends a record to a tape instead of computing.

A ModelSpec's recipe runs once over these ops; the tape is then replayed for every step by one C call.
Neighbouring records merge on the way: a sum joins the norm behind it, and what a matrix multiplication needs
quantized is quantized by the record that makes it. Buffers are fixed, sized for the largest step, and shared
by all layers.
"""

from collections.abc import Callable, Sequence
from ctypes import addressof, pointer
from dataclasses import dataclass, field
from typing import Any

from nanollama.backends.native.library import Activations, Attention, Cache, Matrix
from nanollama.backends.native.tape import Op, OpKind
from nanollama.model.spec import Activation, AttentionSpec, LayerSpec, RopeSpec

ACTIVATIONS: dict[Activation, int] = {"silu": 0, "gelu_tanh": 1}
FLOAT = 4  # bytes


@dataclass(frozen=True)
class NativeWeight:
    """A packed parameter: the address of float32 values, or an R8 matrix with the sizes of its parts.

    ``is_float`` says that the matrix multiplies float32 activations, not quantized ones.
    """

    address: int = 0
    size: int = 0
    matrix: Matrix | None = None
    sizes: tuple[int, ...] = ()
    bias: int = 0
    is_float: bool = False


@dataclass
class Value:
    """A handle to activations: ``cols`` floats at ``address`` in each row of ``stride`` floats.

    ``record`` made it and can still be told to quantize it too; ``pending`` is to be added before it is read.
    """

    address: int
    stride: int
    cols: int
    on_logit_rows: bool = False
    record: Op | None = None
    pending: "Value | None" = None
    activations: Activations | None = None


@dataclass
class Tape:
    """Records in order, and what must stay alive while they are replayed."""

    ops: list[Op] = field(default_factory=list)
    keep: list[Any] = field(default_factory=list)
    windows: list[int | None] = field(default_factory=list)  # plan index -> window
    ropes: list[RopeSpec] = field(default_factory=list)  # rotation index -> frequencies


class NativeOps:
    """Records one model's step. ``allocate(name, bytes)`` hands out the same buffer for the same name."""

    def __init__(
        self,
        allocate: Callable[[str, int], int],
        caches: Sequence[Cache],
        attention_buffers: Callable[[Attention], None],
        max_rows: int,
    ) -> None:
        self.tape = Tape()
        self._allocate = allocate
        self._caches = caches
        self._attention_buffers = attention_buffers
        self._max_rows = max_rows

    def embed(self, table: NativeWeight, scale: float | None) -> Value:
        assert table.matrix is not None
        x = self._buffer("residual", table.matrix.cols)
        self._record(
            OpKind.EMBED,
            matrix=pointer(table.matrix),
            value=1.0 if scale is None else scale,
            out=x.address,
            out_stride=x.stride,
            cols=x.cols,
        )
        return x

    def rms_norm(self, x: Value, weight: NativeWeight, eps: float) -> Value:
        if x.cols < x.stride:
            # A part of a merged result: q or k, normed head by head where it lies.
            record = self._of(x, OpKind.HEAD_NORM, weight=weight.address, value=eps)
            record.heads, record.head_dim = x.cols // weight.size, weight.size
            return x
        record = self._of(x, OpKind.NORM, weight=weight.address, value=eps)
        if x.pending is not None:
            record.in_, record.in_stride = x.pending.address, x.pending.stride
            x.pending = None
        # Where the result goes, if anywhere as floats, is decided by who reads it.
        return Value(0, x.cols, x.cols, x.on_logit_rows, record)

    def linear(self, x: Value, weight: NativeWeight) -> Sequence[Value]:
        assert weight.matrix is not None
        width = sum(weight.sizes)
        activations = self._floats(x) if weight.is_float else self._quantized(x)
        kind = "logits" if x.on_logit_rows else "linear"
        out = self._buffer(f"{kind} {width}", width, on_logit_rows=x.on_logit_rows)
        self._record(
            OpKind.MATMUL,
            on_logit_rows=x.on_logit_rows,
            matrix=pointer(weight.matrix),
            quantized=addressof(activations),
            out=out.address,
            out_stride=width,
            cols=x.cols,
            bias=weight.bias,
        )
        parts, column = [], 0
        for size in weight.sizes:
            parts.append(Value(out.address + column * FLOAT, width, size, x.on_logit_rows))
            column += size
        return parts

    def rope(self, x: Value, layer: LayerSpec, head_dim: int) -> Value:
        rope, last = _index(self.tape.ropes, layer.rope), self.tape.ops[-1]
        # k lies right behind q in the result of their merged matrix: one record turns the heads of both.
        if (
            last.kind == OpKind.ROPE
            and last.rope == rope
            and last.x + last.heads * head_dim * FLOAT == x.address
        ):
            last.heads += x.cols // head_dim
            return x
        record = self._of(x, OpKind.ROPE, rope=rope)
        record.heads, record.head_dim, record.rope_dim = x.cols // head_dim, head_dim, layer.rope.dim
        return x

    def attend(
        self, q: Value, k: Value, v: Value, index: int, layer: LayerSpec, attention: AttentionSpec
    ) -> Value:
        out = self._buffer("attend", q.cols)
        call = Attention(
            cache=self._caches[index],
            query=q.address,
            query_stride=q.stride,
            heads=attention.num_heads,
            window=layer.window or 0,
            scale=attention.scale,
            softcap=0.0,
            out=out.address,
            out_stride=out.stride,
        )
        self._attention_buffers(call)
        plan = _index(self.tape.windows, layer.window)
        common: dict[str, Any] = {"attention": pointer(call), "plan": plan}
        store = self._of(k, OpKind.STORE, in_=v.address, **common)
        store.heads, store.head_dim = attention.num_kv_heads, attention.head_dim
        self._record(OpKind.ATTEND, **common)
        self._record(OpKind.MERGE, **common)
        return out

    def gated(self, gate: Value, up: Value, activation: Activation) -> Value:
        record = self._of(gate, OpKind.ACTIVATE, in_=up.address, activation=ACTIVATIONS[activation])
        return Value(0, gate.cols, gate.cols, record=record)

    def add(self, x: Value, y: Value) -> Value:
        assert x.pending is None, "the recipe norms between two sums"
        self._floats(y)
        x.pending = y
        return x

    def logit_rows(self, x: Value) -> Value:
        out = self._gather(x, "residual")
        if x.pending is not None:
            out.pending = self._gather(x.pending, "update")
        return out

    def _gather(self, x: Value, name: str) -> Value:
        out = self._buffer(f"logit {name}", x.cols, on_logit_rows=True)
        self._of(x, OpKind.GATHER, on_logit_rows=True, out=out.address, out_stride=out.stride)
        return out

    def _floats(self, x: Value) -> Activations:
        """Make sure that ``x`` is there as float32."""
        if not x.address:
            assert x.record is not None
            x.address = self._buffer(f"floats {OpKind(x.record.kind).name} {x.cols}", x.cols).address
            x.record.out, x.record.out_stride = x.address, x.stride
        activations = Activations(values=x.address, stride=x.stride, cols=x.cols)
        self.tape.keep.append(activations)
        return activations

    def _quantized(self, x: Value) -> Activations:
        """Make sure that ``x`` is there quantized: by the record that makes it, or by one of its own."""
        if x.activations is None:
            rows, cols = self._max_rows, x.cols
            quants = self._allocate(f"quants {cols}", rows * cols)
            meta = self._allocate(f"meta {cols}", rows * cols // 32 * 4 * FLOAT)
            x.activations = Activations(
                values=x.address, stride=x.stride, quants=quants, meta=meta, cols=cols
            )
            self.tape.keep.append(x.activations)
            if x.record is not None:
                x.record.quantized = addressof(x.activations)
            else:
                self._of(x, OpKind.QUANTIZE, quantized=addressof(x.activations))
        return x.activations

    def _buffer(self, name: str, cols: int, *, on_logit_rows: bool = False) -> Value:
        return Value(self._allocate(name, self._max_rows * cols * FLOAT), cols, cols, on_logit_rows)

    def _of(self, x: Value, kind: OpKind, **fields: Any) -> Op:
        fields.setdefault("on_logit_rows", x.on_logit_rows)
        return self._record(kind, x=x.address, x_stride=x.stride, cols=x.cols, **fields)

    def _record(self, kind: OpKind, **fields: Any) -> Op:
        op = Op(kind=kind, **{name: value for name, value in fields.items() if value is not None})
        self.tape.ops.append(op)
        self.tape.keep.append(fields)
        return op


def _index(known: list[Any], item: Any) -> int:
    """The place of ``item`` in ``known``, where it is put if it is new."""
    if item not in known:
        known.append(item)
    return known.index(item)
