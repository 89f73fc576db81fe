"""The tape as Python sees it: the records of ``tape.h``, field by field, and the pool that replays them."""

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, Structure, byref, c_float, c_int32, c_int64, c_void_p
from enum import IntEnum
from typing import Any

from nanollama.backends.native.library import (
    Attention,
    AttentionItem,
    AttentionMerge,
    Library,
    Matrix,
    Routing,
)
from nanollama.errors import BackendError


class OpKind(IntEnum):
    """``NlOpKind``: what a record does."""

    EMBED = 0
    NORM = 1
    MATMUL = 2
    HEAD_NORM = 3
    ROPE = 4
    STORE = 5
    ATTEND = 6
    MERGE = 7
    QUANTIZE = 8
    ACTIVATE = 9
    GATHER = 10
    ADD = 11
    SOFTCAP = 12
    RESIZE = 13
    ROUTE = 14
    GROUP = 15
    PLACE = 16
    EXPERTS = 17
    COMBINE = 18
    CHOOSE = 19


class Op(Structure):
    """``NlOp``: one record. Addresses are plain integers; what they point to is kept alive elsewhere."""

    _fields_ = (
        ("kind", c_int32),
        ("on_logit_rows", c_int32),
        ("per_token", c_int32),
        ("activation", c_int32),
        ("heads", c_int32),
        ("head_dim", c_int32),
        ("rope_dim", c_int32),
        ("out_head_dim", c_int32),
        ("plan", c_int32),
        ("rope", c_int32),
        ("value", c_float),
        ("x", c_void_p),
        ("x_stride", c_int64),
        ("in_", c_void_p),
        ("in_stride", c_int64),
        ("out", c_void_p),
        ("out_stride", c_int64),
        ("cols", c_int64),
        ("weight", c_void_p),
        ("matrix", POINTER(Matrix)),
        ("bias", c_void_p),
        ("quantized", c_void_p),
        ("attention", POINTER(Attention)),
        ("routing", POINTER(Routing)),
    )


class AttentionPlan(Structure):
    """``NlAttentionPlan``: the work items of one attention window."""

    _fields_ = (
        ("items", POINTER(AttentionItem)),
        ("item_count", c_int64),
        ("merges", POINTER(AttentionMerge)),
        ("merge_count", c_int64),
    )


class Rotation(Structure):
    """``NlRotation``: cosines and sines by position."""

    _fields_ = (("cos", c_void_p), ("sin", c_void_p))


class Step(Structure):
    """``NlStep``: what differs from step to step."""

    _fields_ = (
        ("rows", c_int64),
        ("logit_rows", c_int64),
        ("token_ids", c_void_p),
        ("positions", c_void_p),
        ("slots", c_void_p),
        ("logit_index", c_void_p),
        ("plans", POINTER(AttentionPlan)),
        ("rotations", POINTER(Rotation)),
        ("choice", c_void_p),
    )


class Retile(Structure):
    """``NlRetile``: a matrix to pack, from addresses of GGUF rows to addresses of R8 groups."""

    _fields_ = (
        ("ggml_type", c_int64),
        ("source", c_void_p),
        ("row_bytes", c_int64),
        ("rows", c_int64),
        ("cols", c_int64),
        ("out", c_void_p),
    )


class Pool:
    """Persistent threads, the caller's included. One replay at a time. Asleep when there is nothing to do."""

    def __init__(self, library: Library, threads: int) -> None:
        """Start ``threads - 1`` threads.

        Raises:
            BackendError: the system refused to start them.
        """
        self.threads = threads
        self._create = library.bind("nl_pool_create", c_void_p, c_int64)
        self._free = library.bind("nl_pool_free", None, c_void_p)
        self._replay = library.bind(
            "nl_replay", None, c_void_p, c_void_p, c_void_p, c_int64, POINTER(Step), c_void_p
        )
        self._retile = library.bind("nl_pool_retile", c_int64, c_void_p, POINTER(Retile), c_int64)
        self._pool = self._create(threads)
        if not self._pool:
            raise BackendError(f"{threads} threads could not be started; use fewer (--threads)")

    def replay(self, kernels: Any, ops: "ctypes.Array[Op]", step: Step) -> None:
        """Run all records for one step."""
        self._replay(self._pool, byref(kernels), ops, len(ops), byref(step), None)

    def replay_timed(self, kernels: Any, ops: "ctypes.Array[Op]", step: Step) -> dict[OpKind, int]:
        """Run all records for one step; the nanoseconds that each kind of record took."""
        elapsed = (c_int64 * len(OpKind))()
        self._replay(self._pool, byref(kernels), ops, len(ops), byref(step), elapsed)
        return {kind: elapsed[kind] for kind in OpKind}

    def retile(self, matrices: "ctypes.Array[Retile]") -> None:
        """Pack matrices one after the other."""
        failed = self._retile(self._pool, matrices, len(matrices))
        assert not failed, "the caller asked nl_kind_of before"

    def close(self) -> None:
        """End the threads."""
        if self._pool:
            self._free(self._pool)
            self._pool = None


def array_of(ops: Sequence[Op]) -> "ctypes.Array[Op]":
    """Records as one C array."""
    return (Op * len(ops))(*ops)
