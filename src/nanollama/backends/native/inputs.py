"""What differs from step to step: a ModelInput comes in, and lies where the tape's kernels read it.

Between two steps all threads wait for this code, and the weights that went by have pushed Python out of the
caches. So memory and structs are made once, and what a decode step of a few rows needs is written with few
and small calls.
"""

import math
from collections.abc import Callable, Sequence
from ctypes import POINTER, addressof, c_uint8, cast
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanollama.backends.native.kv_cache import BLOCK_TOKENS
from nanollama.backends.native.library import AttentionItem, AttentionMerge, Choice, LogitEdits
from nanollama.backends.native.tape import AttentionPlan, Rotation, Step
from nanollama.backends.ops import ModelInput
from nanollama.model.spec import RopeSpec
from nanollama.sampling.edits import Edits

MAX_ROWS = 512
MAX_SEQUENCES = 256
SPAN = 256
"""Tokens of the cache that one piece of attention work covers; the kernels count spans from token 0."""
TILE_ROWS = 16
"""Neighbouring rows of one sequence that share a pass over keys and values."""

_NO_EDITS = LogitEdits()

Take = Callable[[int], int]
"""Gives the address of so many bytes, zeroed and aligned."""


class StepInputs:
    """Memory for the inputs of the largest step over ``num_blocks`` blocks. One step at a time.

    ``block_tables`` ``[MAX_SEQUENCES, num_blocks]`` is where attention reads the block ids of each sequence;
    a step has at most ``max_slots`` spans whose results are merged.
    """

    def __init__(self, take: Take, num_blocks: int) -> None:
        self._take = take
        self._num_blocks = num_blocks
        self._token_ids = array(take, (MAX_ROWS,), np.int32)
        self._positions = array(take, (MAX_ROWS,), np.int32)
        self._slots = array(take, (MAX_ROWS,), np.int64)
        self._logit_index = array(take, (MAX_ROWS,), np.int64)
        self.block_tables = array(take, (MAX_SEQUENCES, num_blocks), np.int32)
        self._written: list[tuple[int, ...]] = [()] * MAX_SEQUENCES  # what `block_tables` holds
        # Every sequence decoding, one of them over the whole cache.
        self.max_slots = MAX_SEQUENCES + -(-num_blocks * BLOCK_TOKENS // SPAN)
        self._plans: list[_Plan] = []
        self._rotations: list[_Angles] = []
        self._choice = Choice()
        self._choice_address = addressof(self._choice)
        self._best_ids, self._best_logits = np.empty(0, np.int32), np.empty(0, np.float32)
        self._step = Step(
            token_ids=self._token_ids.ctypes.data,
            positions=self._positions.ctypes.data,
            slots=self._slots.ctypes.data,
            logit_index=self._logit_index.ctypes.data,
        )

    def bind(self, windows: Sequence[int | None], ropes: Sequence[RopeSpec]) -> None:
        """Make place for the attention windows and rotations that a tape names."""
        plans = (AttentionPlan * len(windows))()
        self._plans = [
            _Plan(self._take, w, self.max_slots, plan) for w, plan in zip(windows, plans, strict=True)
        ]
        self._rotations = [_Angles(self._take, rope, self._num_blocks * BLOCK_TOKENS) for rope in ropes]
        self._step.plans = plans
        self._step.rotations = (Rotation * len(ropes))(*(angles.struct for angles in self._rotations))

    def fill(self, batch: ModelInput) -> Step:
        """Write the step's tokens, places and work items. The result is valid until the next call."""
        rows = len(batch.token_ids)
        assert rows <= MAX_ROWS, "the engine keeps within the limits"
        assert len(batch.sequences) <= MAX_SEQUENCES, "the engine keeps within the limits"
        positions: list[int] = []
        slots: list[int] = []
        for i, sequence in enumerate(batch.sequences):
            table = sequence.block_table
            if self._written[i] != table:
                self.block_tables[i, : len(table)] = table
                self._written[i] = table
            where = range(sequence.n_cached, sequence.n_cached + sequence.n_new)
            positions += where
            slots += [table[at // BLOCK_TOKENS] * BLOCK_TOKENS + at % BLOCK_TOKENS for at in where]
        self._token_ids[:rows] = batch.token_ids
        self._positions[:rows] = positions
        self._slots[:rows] = slots
        self._logit_index[: len(batch.logit_rows)] = batch.logit_rows
        for plan in self._plans:
            plan.fill(batch)
        furthest = max(positions, default=0)
        for angles in self._rotations:
            angles.reach(furthest + 1)
        self._step.rows, self._step.logit_rows = rows, len(batch.logit_rows)
        self._step.choice = None
        return self._step

    def ask_for_best(
        self, rows: int, k: int, edits: Edits | None
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Have the filled step find the ``k`` highest logits of its logit rows: where ids and logits will be.

        ``edits`` must stay alive until then.
        """
        n, choice = rows * k, self._choice
        if n > len(self._best_ids):
            self._best_ids = array(self._take, (2 * n,), np.int32)
            self._best_logits = array(self._take, (2 * n,), np.float32)
            choice.ids, choice.logits = self._best_ids.ctypes.data, self._best_logits.ctypes.data
        choice.k = k
        choice.edits = _NO_EDITS
        if edits:
            arrays = (edits.begins, edits.token_ids, edits.times, edits.bias, edits.factors)
            choice.edits = LogitEdits(*(each.buffer_info()[0] for each in arrays))
        self._step.choice = self._choice_address
        return self._best_ids[:n].reshape(rows, k), self._best_logits[:n].reshape(rows, k)


class _Plan:
    """The work items of one attention window: tiles of rows in a prompt, spans of the cache in decoding."""

    def __init__(self, take: Take, window: int | None, max_slots: int, struct: AttentionPlan) -> None:
        self._window = window
        self._max_slots = max_slots
        self._items = array(take, (max_slots + MAX_ROWS, 7), np.int32)
        self._merges = array(take, (MAX_SEQUENCES, 3), np.int32)
        self._struct = struct
        struct.items = cast(self._items.ctypes.data, POINTER(AttentionItem))
        struct.merges = cast(self._merges.ctypes.data, POINTER(AttentionMerge))

    def fill(self, batch: ModelInput) -> None:
        """Write items and merges, and how many there are."""
        items: list[tuple[int, ...]] = []
        merges: list[tuple[int, int, int]] = []
        row = slot = 0
        for i, s in enumerate(batch.sequences):
            spans = self._spans(s.n_cached, s.n_new)
            if s.n_new == 1 and len(spans) > 1 and slot + len(spans) <= self._max_slots:
                items += [(row, 1, i, s.n_cached, span, span + 1, slot + j) for j, span in enumerate(spans)]
                merges.append((row, slot, len(spans)))
                slot += len(spans)
            else:
                for start in range(0, s.n_new, TILE_ROWS):
                    rows, position = min(TILE_ROWS, s.n_new - start), s.n_cached + start
                    spans = self._spans(position, rows)
                    items.append((row + start, rows, i, position, spans.start, spans.stop, -1))
            row += s.n_new
        if items:
            self._items[: len(items)] = items
        if merges:
            self._merges[: len(merges)] = merges
        self._struct.item_count, self._struct.merge_count = len(items), len(merges)

    def _spans(self, position: int, rows: int) -> range:
        """The spans that ``rows`` rows from ``position`` on look at."""
        first = 0 if self._window is None else max(0, position + 1 - self._window) // SPAN
        return range(first, -(-(position + rows) // SPAN))


class _Angles:
    """Cosines and sines of one rotation, by position: computed as far as any sequence came so far."""

    def __init__(self, take: Take, rope: RopeSpec, max_positions: int) -> None:
        self._frequencies = np.asarray(rope.frequencies, dtype=np.float32)
        self._magnitude = np.float32(rope.magnitude)
        shape = (max_positions, len(rope.frequencies))
        self._cos, self._sin = array(take, shape, np.float32), array(take, shape, np.float32)
        self._known = 0
        self.struct = Rotation(cos=self._cos.ctypes.data, sin=self._sin.ctypes.data)

    def reach(self, positions: int) -> None:
        """Compute what is missing of the first ``positions`` positions, and as much again."""
        if positions <= self._known:
            return
        more = slice(self._known, min(len(self._cos), max(2 * positions, SPAN)))
        angles = np.outer(np.arange(more.start, more.stop, dtype=np.float32), self._frequencies)
        for table, function in ((self._cos, np.cos), (self._sin, np.sin)):
            function(angles, out=table[more])
            table[more] *= self._magnitude
        self._known = more.stop


def array(take: Take, shape: tuple[int, ...], dtype: type) -> NDArray[Any]:
    """An array in memory that the kernels see."""
    return array_at(take(math.prod(shape) * np.dtype(dtype).itemsize), shape, dtype)


def array_at(address: int, shape: tuple[int, ...], dtype: type) -> NDArray[Any]:
    """The array that lies at ``address``; whoever uses it keeps the memory alive."""
    memory = (c_uint8 * (math.prod(shape) * np.dtype(dtype).itemsize)).from_address(address)
    return np.ndarray(shape, dtype=dtype, buffer=memoryview(memory))
