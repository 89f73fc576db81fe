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

from nanollama.backends.native.library import Activations, Attention, Cache, Matrix, Routing
from nanollama.backends.native.tape import Op, OpKind
from nanollama.model.spec import Activation, AttentionSpec, ExpertsSpec, LayerSpec, RopeSpec

ACTIVATIONS: dict[Activation, int] = {"silu": 0, "gelu_tanh": 1, "clamped_swiglu": 2}
FLOAT = 4  # bytes


@dataclass(frozen=True)
class NativeWeight:
    """A packed parameter: the address of float32 values, or an R8 matrix with the sizes of its parts.

    Experts have a matrix each, all of the same sizes, and their biases lie one after the other. ``is_float``
    says that the matrix multiplies float32 activations, not quantized ones; ``is_fine`` that it takes words,
    not bytes, of the latter.
    """

    address: int = 0
    size: int = 0
    matrix: Matrix | None = None
    experts: Sequence[Matrix] = ()
    sizes: tuple[int, ...] = ()
    bias: int = 0
    is_float: bool = False
    is_fine: bool = False


@dataclass
class Value:
    """A handle to activations: ``cols`` floats at ``address`` in each row of ``stride`` floats.

    ``record`` made it and can still be told to quantize it too; ``pending`` is to be added before it is read.
    Each token has ``per_token`` rows: one, or one for each of its experts.
    """

    address: int
    stride: int
    cols: int
    on_logit_rows: bool = False
    per_token: int = 1
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
            # A part of a merged result: q or k, normed where it lies, head by head or as one.
            record = self._of(x, OpKind.HEAD_NORM, weight=weight.address, value=eps)
            record.heads, record.head_dim = x.cols // weight.size, weight.size
            return x
        record = self._of(x, OpKind.NORM, weight=weight.address, value=eps)
        if x.pending is not None:
            record.in_, record.in_stride = x.pending.address, x.pending.stride
            x.pending = None
        # Where the result goes, if anywhere as floats, is decided by who reads it.
        return Value(0, x.cols, x.cols, x.on_logit_rows, record=record)

    def linear(self, x: Value, weight: NativeWeight) -> Sequence[Value]:
        assert weight.matrix is not None
        return self._matmul(OpKind.MATMUL, x, weight, matrix=pointer(weight.matrix))

    def _matmul(self, kind: OpKind, x: Value, weight: NativeWeight, **fields: Any) -> Sequence[Value]:
        width = sum(weight.sizes)
        activations = self._floats(x) if weight.is_float else self._quantized(x, weight.is_fine)
        name = "logits" if x.on_logit_rows else "linear"
        out = self._buffer(f"{name} {width}", width, like=x)
        self._record(
            kind,
            on_logit_rows=x.on_logit_rows,
            quantized=addressof(activations),
            out=out.address,
            out_stride=width,
            cols=x.cols,
            bias=weight.bias,
            **fields,
        )
        parts, column = [], 0
        for size in weight.sizes:
            address = out.address + column * FLOAT
            parts.append(Value(address, width, size, x.on_logit_rows, x.per_token))
            column += size
        return parts

    def rope(self, x: Value, rope: RopeSpec, head_dim: int) -> Value:
        index, last = _index(self.tape.ropes, rope), self.tape.ops[-1]
        # k lies right behind q in the result of their merged matrix: one record turns the heads of both.
        if (
            last.kind == OpKind.ROPE
            and last.rope == index
            and last.x + last.heads * head_dim * FLOAT == x.address
        ):
            last.heads += x.cols // head_dim
            return x
        record = self._of(x, OpKind.ROPE, rope=index)
        record.heads, record.head_dim, record.rope_dim = x.cols // head_dim, head_dim, rope.dim
        return x

    def attend(
        self,
        q: Value,
        k: Value,
        v: Value,
        sinks: NativeWeight | None,
        index: int,
        layer: LayerSpec,
        attention: AttentionSpec,
    ) -> Value:
        cache, head_dim = self._caches[index], attention.head_dim
        if cache.head_dim != head_dim:
            q, k, v = self._resized((q, k, v), head_dim, cache.head_dim)
        out = self._buffer("attend", q.cols)
        call = Attention(
            cache=cache,
            query=q.address,
            query_stride=q.stride,
            heads=attention.num_heads,
            window=layer.window or 0,
            scale=attention.scale,
            softcap=attention.softcap or 0.0,
            out=out.address,
            out_stride=out.stride,
            sinks=None if sinks is None else sinks.address,
        )
        self._attention_buffers(call)
        plan = _index(self.tape.windows, layer.window)
        common: dict[str, Any] = {"attention": pointer(call), "plan": plan}
        store = self._of(k, OpKind.STORE, in_=v.address, **common)
        store.heads, store.head_dim = attention.num_kv_heads, cache.head_dim
        self._record(OpKind.ATTEND, **common)
        self._record(OpKind.MERGE, **common)
        if cache.head_dim != head_dim:
            (out,) = self._resized((out,), cache.head_dim, head_dim)
        return out

    def _resized(self, parts: Sequence[Value], head_dim: int, out_head_dim: int) -> Sequence[Value]:
        """Neighbouring parts with heads of another size: cut, or longer by zeros."""
        first = parts[0]
        heads = [part.cols // head_dim for part in parts]
        assert parts[-1].address + parts[-1].cols * FLOAT == first.address + sum(heads) * head_dim * FLOAT
        # Nobody writes to what lies between the heads: it stays as it was allocated, zero.
        out = self._buffer(f"heads of {out_head_dim}", sum(heads) * out_head_dim)
        record = self._of(first, OpKind.RESIZE, out=out.address, out_stride=out.stride)
        record.heads, record.head_dim, record.out_head_dim = sum(heads), head_dim, out_head_dim
        made, column = [], 0
        for n in heads:
            made.append(Value(out.address + column * FLOAT, out.stride, n * out_head_dim))
            column += n * out_head_dim
        return made

    def gated(self, gate: Value, up: Value, activation: Activation) -> Value:
        record = self._of(gate, OpKind.ACTIVATE, in_=up.address, activation=ACTIVATIONS[activation])
        return Value(0, gate.cols, gate.cols, per_token=gate.per_token, record=record)

    def experts(
        self,
        x: Value,
        scores: Value,
        gate_up: NativeWeight,
        down: NativeWeight,
        activation: Activation,
        experts: ExpertsSpec,
    ) -> Value:
        routing = pointer(self._routing(experts))
        self._of(scores, OpKind.ROUTE, routing=routing)
        self._record(OpKind.GROUP, routing=routing)
        placed = self._placed(x, gate_up, experts.per_token, routing)
        gate, up = self._expert_matmul(placed, gate_up, routing)
        (each,) = self._expert_matmul(self.gated(gate, up, activation), down, routing)
        out = self._buffer("experts", each.cols)
        self._of(each, OpKind.COMBINE, per_token=1, routing=routing, out=out.address, out_stride=out.stride)
        return out

    def _expert_matmul(self, x: Value, weight: NativeWeight, routing: Any) -> Sequence[Value]:
        matrices = (Matrix * len(weight.experts))(*weight.experts)
        return self._matmul(OpKind.EXPERTS, x, weight, matrix=matrices, routing=routing)

    def _placed(self, x: Value, weight: NativeWeight, per_token: int, routing: Any) -> Value:
        """The rows of ``x`` as ``weight`` wants them, sorted by expert: a copy for each expert of a token."""
        placed = Value(0, x.cols, x.cols, per_token=per_token)

        def place(name: str, source: int, stride: int, words: int) -> int:
            to = self._buffer(f"placed {name}", words, like=placed)
            self._record(
                OpKind.PLACE, per_token=per_token, routing=routing,
                x=source, x_stride=stride, out=to.address, out_stride=words, cols=words,
            )  # fmt: skip
            return to.address

        if weight.is_float:
            source = self._floats(x)
            placed.address = place("floats", source.values, source.stride, x.cols)
            return placed
        source = self._quantized(x, weight.is_fine)
        sizes = {"quants": x.cols // FLOAT, "meta": x.cols // 32 * 4}
        if weight.is_fine:
            sizes |= {"words": x.cols // 2, "word_sums": x.cols // 32}
        placed.activations = Activations(
            cols=x.cols, **{name: place(name, getattr(source, name), n, n) for name, n in sizes.items()}
        )
        self.tape.keep.append(placed.activations)
        return placed

    def _routing(self, experts: ExpertsSpec) -> Routing:
        choices = self._max_rows * experts.per_token
        sizes = dict.fromkeys(("chosen", "shares", "places", "rows"), choices)
        sizes |= dict.fromkeys(("ends", "active"), experts.count)
        return Routing(
            experts=experts.count,
            per_token=experts.per_token,
            normalized=experts.normalized,
            **{name: self._allocate(f"routing {name}", size * FLOAT) for name, size in sizes.items()},
        )

    def softcap(self, x: Value, cap: float) -> Value:
        self._of(x, OpKind.SOFTCAP, value=cap)
        return x

    def choose(self, logits: Value) -> None:
        """The highest of each row, in steps that want them."""
        self._of(logits, OpKind.CHOOSE)

    def add(self, x: Value, y: Value) -> Value:
        self._settle(x)
        self._floats(y)
        return Value(x.address, x.stride, x.cols, x.on_logit_rows, pending=y)

    def _settle(self, x: Value) -> None:
        """Add what is pending where no norm does it."""
        if x.pending is not None:
            x.record = self._of(x, OpKind.ADD, in_=x.pending.address, in_stride=x.pending.stride)
            x.pending = None

    def logit_rows(self, x: Value) -> Value:
        out = self._gather(x, "residual")
        if x.pending is not None:
            out.pending = self._gather(x.pending, "update")
        return out

    def _gather(self, x: Value, name: str) -> Value:
        out = self._buffer(f"logit {name}", x.cols)
        out.on_logit_rows = True
        self._of(x, OpKind.GATHER, on_logit_rows=True, out=out.address, out_stride=out.stride)
        return out

    def _floats(self, x: Value) -> Activations:
        """Make sure that ``x`` is there as float32."""
        self._settle(x)
        if not x.address:
            assert x.record is not None
            x.address = self._buffer(f"floats {OpKind(x.record.kind).name} {x.cols}", x.cols, like=x).address
            x.record.out, x.record.out_stride = x.address, x.stride
        activations = Activations(values=x.address, stride=x.stride, cols=x.cols)
        self.tape.keep.append(activations)
        return activations

    def _quantized(self, x: Value, is_fine: bool) -> Activations:
        """Make sure that ``x`` is there quantized: by the record that makes it, or by one of its own."""
        self._settle(x)
        if x.activations is None:
            cols = x.cols
            quants = self._buffer(f"quants {cols}", cols // FLOAT, like=x).address
            meta = self._buffer(f"meta {cols}", cols // 32 * 4, like=x).address
            x.activations = Activations(
                values=x.address, stride=x.stride, quants=quants, meta=meta, cols=cols
            )
            self.tape.keep.append(x.activations)
            if x.record is not None:
                x.record.quantized = addressof(x.activations)
            else:
                self._of(x, OpKind.QUANTIZE, quantized=addressof(x.activations))
        if is_fine and not x.activations.words:
            x.activations.words = self._buffer(f"words {x.cols}", x.cols // 2, like=x).address
            x.activations.word_sums = self._buffer(f"word sums {x.cols}", x.cols // 32, like=x).address
        return x.activations

    def _buffer(self, name: str, cols: int, *, like: Value | None = None) -> Value:
        """``cols`` floats for each row of the largest step, on the rows that ``like`` has."""
        value = Value(0, cols, cols)
        if like is not None:
            value.on_logit_rows, value.per_token = like.on_logit_rows, like.per_token
        if value.per_token > 1:
            name += f" of {value.per_token} experts"
        value.address = self._allocate(name, self._max_rows * value.per_token * cols * FLOAT)
        return value

    def _of(self, x: Value, kind: OpKind, **fields: Any) -> Op:
        fields.setdefault("on_logit_rows", x.on_logit_rows)
        fields.setdefault("per_token", x.per_token)
        return self._record(kind, x=x.address, x_stride=x.stride, cols=x.cols, **fields)

    def _record(self, kind: OpKind, **fields: Any) -> Op:
        fields.setdefault("per_token", 1)
        op = Op(kind=kind, **{name: value for name, value in fields.items() if value is not None})
        self.tape.ops.append(op)
        self.tape.keep.append(fields)
        return op


def _index(known: list[Any], item: Any) -> int:
    """The place of ``item`` in ``known``, where it is put if it is new."""
    if item not in known:
        known.append(item)
    return known.index(item)
