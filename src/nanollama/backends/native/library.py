"""The kernels as Python sees them: the path of a built library comes in, its functions and structs go out.

Field by field what ``kernels.h`` declares. ctypes only: pointers are plain addresses, checked by nobody below
this line, so whoever fills the structs keeps the buffers alive and the sizes right. Calls release the
interpreter lock.
"""

import ctypes
from collections.abc import Callable
from ctypes import POINTER, Structure, c_char_p, c_float, c_int32, c_int64, c_uint64, c_void_p
from enum import IntEnum
from pathlib import Path
from typing import Any

from nanollama.errors import BackendError

Function = Callable[..., Any]


class Kind(IntEnum):
    """How a packed matrix stores its weights (``layout.h``)."""

    U4D = 0
    U4DM = 1
    U5D = 2
    U5DM = 3
    S8D = 4
    U4K = 5
    U5K = 6
    U6K = 7
    N4D = 8
    N4E = 9
    F16 = 10
    BF16 = 11
    F32 = 12

    @property
    def is_float(self) -> bool:
        """Whether the kernels multiply it with float32 activations instead of quantized ones."""
        return self >= Kind.F16

    @property
    def is_fine(self) -> bool:
        """Whether its products take activations in words, not in bytes."""
        return self in {Kind.U4DM, Kind.U5D, Kind.U5DM, Kind.S8D, Kind.U5K}


class Segment(Structure):
    """``NlSegment``: rows ``[out_column, out_column + rows)`` of a matrix, packed."""

    _fields_ = (("data", c_void_p), ("rows", c_int64), ("out_column", c_int64), ("kind", c_int64))


class Matrix(Structure):
    """``NlMatrix``: segments that share their input."""

    _fields_ = (("segments", POINTER(Segment)), ("segment_count", c_int64), ("cols", c_int64))


class Activations(Structure):
    """``NlActivations``: float32 rows and their quantized form."""

    _fields_ = (
        ("values", c_void_p),
        ("stride", c_int64),
        ("quants", c_void_p),
        ("meta", c_void_p),
        ("cols", c_int64),
        ("words", c_void_p),
        ("word_sums", c_void_p),
    )


class Cache(Structure):
    """``NlCache``: the paged keys and values of one layer, in float16 or float32."""

    _fields_ = (
        ("keys", c_void_p),
        ("values", c_void_p),
        ("is_float32", c_int64),
        ("block_size", c_int64),
        ("kv_heads", c_int64),
        ("head_dim", c_int64),
        ("block_stride", c_int64),
    )


class Attention(Structure):
    """``NlAttention``: what one attention call works on."""

    _fields_ = (
        ("cache", Cache),
        ("query", c_void_p),
        ("query_stride", c_int64),
        ("block_tables", c_void_p),
        ("block_table_stride", c_int64),
        ("heads", c_int64),
        ("window", c_int64),
        ("scale", c_float),
        ("softcap", c_float),
        ("out", c_void_p),
        ("out_stride", c_int64),
        ("partials", c_void_p),
        ("sinks", c_void_p),
    )


class AttentionItem(Structure):
    """``NlAttentionItem``: up to 16 query rows of one sequence over a range of spans."""

    _fields_ = tuple(
        (name, c_int32) for name in ("row", "rows", "sequence", "position", "span_begin", "span_end", "slot")
    )


class AttentionMerge(Structure):
    """``NlAttentionMerge``: the slots that make up one row."""

    _fields_ = tuple((name, c_int32) for name in ("row", "slot", "slots"))


class Routing(Structure):
    """``NlRouting``: where a step's rows go in a mixture of experts."""

    _fields_ = (
        ("experts", c_int64),
        ("per_token", c_int64),
        ("normalized", c_int64),
        ("chosen", c_void_p),
        ("shares", c_void_p),
        ("places", c_void_p),
        ("rows", c_void_p),
        ("ends", c_void_p),
        ("active", c_void_p),
        ("active_count", c_int64),
    )


class LogitEdits(Structure):
    """``NlEdits``: what to change in rows of logits."""

    _fields_ = (
        ("begins", c_void_p),
        ("token_ids", c_void_p),
        ("times", c_void_p),
        ("bias", c_void_p),
        ("factors", c_void_p),
    )


class Choice(Structure):
    """``NlChoice``: the highest logits of each row, behind its edits."""

    _fields_ = (("edits", LogitEdits), ("k", c_int64), ("ids", c_void_p), ("logits", c_void_p))


_RANGE = (c_int64, c_int64)
_MATMUL = (POINTER(Matrix), POINTER(Activations), c_int64, c_void_p, c_int64, c_void_p, *_RANGE, c_void_p)
_NORM = (c_void_p, c_int64, c_int64, c_void_p, c_int64, c_void_p, c_float, c_void_p, c_int64)
_ROPE = (c_void_p, c_int64, c_int64, c_int64, c_int64, c_void_p, c_void_p, c_void_p)
_ADD = (c_void_p, c_int64, c_int64, c_void_p, c_int64, POINTER(Activations))
_COMBINE = (POINTER(Routing), c_void_p, c_int64, c_int64, c_void_p, c_int64)
_ACTIVATE = (c_int64, c_void_p, c_void_p, c_int64, c_int64, c_void_p, c_int64, POINTER(Activations))


class Kernels(Structure):
    """``NlKernels``: one instruction set's table of functions."""

    _fields_ = (
        ("name", c_char_p),
        ("matmul", ctypes.CFUNCTYPE(None, *_MATMUL)),
        ("quantize", ctypes.CFUNCTYPE(None, POINTER(Activations), *_RANGE)),
        ("rms_norm", ctypes.CFUNCTYPE(None, *_NORM, POINTER(Activations), *_RANGE)),
        ("add", ctypes.CFUNCTYPE(None, *_ADD, *_RANGE)),
        ("rope", ctypes.CFUNCTYPE(None, *_ROPE, *_RANGE)),
        ("activate", ctypes.CFUNCTYPE(None, *_ACTIVATE, *_RANGE)),
        ("softcap", ctypes.CFUNCTYPE(None, c_void_p, c_int64, c_int64, c_float, *_RANGE)),
        ("route", ctypes.CFUNCTYPE(None, POINTER(Routing), c_void_p, c_int64, *_RANGE)),
        ("combine", ctypes.CFUNCTYPE(None, *_COMBINE, *_RANGE)),
        ("choose", ctypes.CFUNCTYPE(None, POINTER(Choice), c_void_p, c_int64, c_int64, *_RANGE)),
        ("store_kv", ctypes.CFUNCTYPE(None, POINTER(Cache), c_void_p, c_void_p, c_int64, c_void_p, *_RANGE)),
        ("attention", ctypes.CFUNCTYPE(None, POINTER(Attention), POINTER(AttentionItem), *_RANGE, c_int64)),
        ("attention_merge", ctypes.CFUNCTYPE(None, POINTER(Attention), POINTER(AttentionMerge), *_RANGE)),
    )

    matmul: Function
    quantize: Function
    rms_norm: Function
    add: Function
    rope: Function
    activate: Function
    softcap: Function
    route: Function
    combine: Function
    choose: Function
    store_kv: Function
    attention: Function
    attention_merge: Function


class Library:
    """A loaded kernel library. The functions keep their C names and take what ``kernels.h`` says."""

    def __init__(self, path: Path) -> None:
        """Load the library at ``path``.

        Raises:
            BackendError: it is not there, or was built for another machine.
        """
        try:
            self._handle = ctypes.CDLL(str(path))
        except OSError as error:
            raise BackendError(f"the CPU kernels could not be loaded: {error}; build them again") from error
        self.nl_kind_of = self.bind("nl_kind_of", c_int64, c_int64)
        self.nl_packed_bytes = self.bind("nl_packed_bytes", c_int64, c_int64, c_int64, c_int64)
        self.nl_arena_alloc = self.bind("nl_arena_alloc", c_void_p, c_int64, c_int64)
        self.nl_arena_free = self.bind("nl_arena_free", None, c_void_p, c_int64)
        self.nl_read = self.bind("nl_read", c_uint64, c_void_p, c_int64)
        self._variant = self.bind("nl_variant", c_char_p, c_int64)
        self._kernels = self.bind("nl_kernels", POINTER(Kernels), c_char_p)

    def bind(self, name: str, result: Any, *arguments: Any) -> Function:
        """The C function ``name``, which returns ``result`` and takes ``arguments``, all types of ctypes."""
        function = getattr(self._handle, name)
        function.restype, function.argtypes = result, arguments
        return function  # type: ignore[no-any-return]  # ctypes functions are untyped

    def variants(self) -> tuple[str, ...]:
        """The variants that this processor can run, best first."""
        names = []
        index = 0
        while (name := self._variant(index)) is not None:
            if self._kernels(name):
                names.append(name.decode())
            index += 1
        return tuple(names)

    def kernels(self, variant: str | None = None) -> Kernels:
        """The table of ``variant``, or the best one for this processor.

        Raises:
            BackendError: the library has no such variant, or this processor can't run it.
        """
        table = self._kernels(variant.encode() if variant else None)
        if not table:
            raise BackendError(
                f"this processor can't run the kernel variant {variant!r}; "
                f"use one of {', '.join(self.variants())}"
            )
        return table.contents  # type: ignore[no-any-return]  # ctypes pointers are untyped
