"""The native backend: a model on the CPU as one tape, recorded when it is loaded and replayed for every step.

ModelInput in, float32 logits out; torch is not imported.
"""

import ctypes
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanollama.backends.native.kv_cache import BLOCK_TOKENS, PagedCache, wants_float32
from nanollama.backends.native.library import Attention, AttentionItem, AttentionMerge, Library
from nanollama.backends.native.memory import Arena
from nanollama.backends.native.ops import NativeOps
from nanollama.backends.native.packer import NativePacker
from nanollama.backends.native.repack import RepackQueue
from nanollama.backends.native.tape import AttentionPlan, OpKind, Pool, Rotation, Step, array_of
from nanollama.backends.ops import ModelInput
from nanollama.errors import UnsupportedError
from nanollama.model.checkpoint import PackedTensor
from nanollama.model.spec import ModelSpec, RopeSpec
from nanollama.model.transformer import forward
from nanollama.model.weights import load_weights

MAX_ROWS = 512
MAX_SEQUENCES = 256
SPAN = 256
"""Tokens of the cache that one piece of attention work covers; the kernels count spans from token 0."""
TILE_ROWS = 16
"""Neighbouring rows of one sequence that share a pass over keys and values."""
MAX_HEAD_DIM = 512
MAX_GROUP = 128
"""Query heads for a key-value head; the kernels have room on the stack for that many."""


def missing_features(spec: ModelSpec) -> list[str]:
    """What ``spec`` asks for and the kernels have no code for, in words; empty for a model that can run."""
    a = spec.attention
    group = a.num_heads // a.num_kv_heads
    found = {
        f"heads of {a.head_dim} dimensions, more than {MAX_HEAD_DIM}": a.head_dim > MAX_HEAD_DIM,
        f"{group} query heads for each key-value head, more than {MAX_GROUP}": group > MAX_GROUP,
    }
    return [feature for feature, is_asked in found.items() if is_asked]


def check_supported(spec: ModelSpec) -> None:
    """Refuse models the kernels have no code for.

    Raises:
        UnsupportedError: names what is missing.
    """
    if missing := missing_features(spec):
        raise UnsupportedError(
            f"the native backend has no code for {' and '.join(missing)}; the torch backend has"
        )


class NativeBackend:
    """One model on the CPU. Not thread-safe: one step at a time."""

    def __init__(
        self,
        spec: ModelSpec,
        tensors: Mapping[str, PackedTensor],
        *,
        library: Library,
        threads: int,
        cache_tokens: int,
        variant: str | None = None,
    ) -> None:
        """Begin to pack the weights, and record the tape.

        ``variant`` names an instruction set, ``None`` the best.

        Raises:
            FormatError: the tensors do not fill the model exactly.
            UnsupportedError: a size the kernels have no code for.
            BackendError: too little memory, or no such variant.
        """
        check_supported(spec)
        self.spec = spec
        self.block_tokens = BLOCK_TOKENS
        self.max_rows, self.max_sequences = MAX_ROWS, MAX_SEQUENCES
        self.num_blocks = -(-cache_tokens // BLOCK_TOKENS)
        self._kernels = library.kernels(variant)
        self._pool = Pool(library, threads)
        self._arena = Arena(library, huge_pages=True)
        self._scratch = Arena(library, huge_pages=False)
        self._repack = RepackQueue(self._pool)
        packer = NativePacker(library, self._repack, self._arena)
        self._weights = load_weights(spec, tensors, packer)
        self._repack.start()
        self.read_bytes = packer.n_bytes - (0 if spec.tied_head else packer.embedding_bytes)
        if (experts := spec.mlp.experts) is not None:
            self.read_bytes -= packer.expert_bytes * (experts.count - experts.per_token) // experts.count
        self.decoded = packer.decoded
        self._buffers: dict[str, int] = {}
        self._allocate_step()
        is_float32 = wants_float32(tensors.values())
        self._cache = PagedCache(self._arena, spec, self.num_blocks, is_float32=is_float32)
        ops = NativeOps(self._buffer, self._cache.layers, self._bind_attention, MAX_ROWS)
        self._logits = forward(ops, spec, self._weights)
        self._tape = ops.tape
        self._ops = array_of(ops.tape.ops)
        self._frequencies = [np.asarray(rope.frequencies, dtype=np.float32) for rope in ops.tape.ropes]

    def finish_loading(self) -> None:
        """Return when all weights are packed; every step waits for that too."""
        self._repack.wait()

    def step(self, batch: ModelInput) -> NDArray[np.float32]:
        """Run one step; the logits ``[len(batch.logit_rows), vocab]``, valid until the next step."""
        self._pool.replay(self._kernels, self._ops, self._fill(batch))
        return self._read_logits(len(batch.logit_rows))

    def greedy(self, batch: ModelInput) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Run one step; the likeliest token of each logit row, and its logit."""
        logits = self.step(batch)
        best = logits.argmax(axis=1)
        return best, logits[np.arange(len(best)), best]

    def step_timed(self, batch: ModelInput) -> dict[OpKind, int]:
        """Run one step; the nanoseconds that each kind of record took."""
        return self._pool.replay_timed(self._kernels, self._ops, self._fill(batch))

    def close(self) -> None:
        """End the threads and give the memory back."""
        self._repack.join()
        self._pool.close()
        self._arena.close()
        self._scratch.close()

    def _buffer(self, name: str, n_bytes: int) -> int:
        if name not in self._buffers:
            self._buffers[name] = self._scratch.take(n_bytes)
        return self._buffers[name]

    def _array(self, name: str, shape: tuple[int, ...], dtype: type) -> NDArray[Any]:
        """A named buffer as an array; the kernels see what is written to it."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        memory = (ctypes.c_uint8 * size).from_address(self._buffer(name, size))
        return np.ndarray(shape, dtype=dtype, buffer=memoryview(memory))

    def _allocate_step(self) -> None:
        self._token_ids = self._array("token ids", (MAX_ROWS,), np.int32)
        self._slots = self._array("slots", (MAX_ROWS,), np.int64)
        self._positions = np.zeros(MAX_ROWS, dtype=np.float32)
        self._logit_index = self._array("logit index", (MAX_ROWS,), np.int64)
        self._row_numbers = self._array("row numbers", (MAX_ROWS,), np.int32)
        self._row_numbers[:] = np.arange(MAX_ROWS)
        self._tables = self._array("block tables", (MAX_SEQUENCES, self.num_blocks), np.int32)
        # Only rows that are decoded alone are spread over spans.
        self._max_spans = -(-self.num_blocks * BLOCK_TOKENS // SPAN)

    def _bind_attention(self, call: Attention) -> None:
        call.block_tables = self._tables.ctypes.data
        call.block_table_stride = self.num_blocks
        heads, dim = self.spec.attention.num_heads, self._cache.head_dim
        slots = MAX_SEQUENCES + self._max_spans  # every sequence decoding, one of them over the whole cache
        call.partials = self._buffer("partials", slots * heads * (dim + 2) * 4)
        self._max_slots = slots

    def _fill(self, batch: ModelInput) -> Step:
        """Make the step's copies, and write its tokens, places and work items where the tape reads them."""
        n = len(batch.token_ids)
        assert n <= MAX_ROWS, "the engine keeps within the limits"
        assert len(batch.sequences) <= MAX_SEQUENCES, "the engine keeps within the limits"
        self.finish_loading()
        self._cache.copy_blocks(batch.copies)
        self._token_ids[:n] = batch.token_ids
        self._logit_index[: len(batch.logit_rows)] = batch.logit_rows
        row = 0
        for i, sequence in enumerate(batch.sequences):
            table = np.asarray(sequence.block_table, dtype=np.int32)
            self._tables[i, : len(table)] = table
            where = np.arange(sequence.n_cached, sequence.n_cached + sequence.n_new)
            self._positions[row : row + sequence.n_new] = where
            self._slots[row : row + sequence.n_new] = (
                table[where // BLOCK_TOKENS].astype(np.int64) * BLOCK_TOKENS + where % BLOCK_TOKENS
            )
            row += sequence.n_new
        plans = [self._plan(batch, window) for window in self._tape.windows]
        rotations = [self._rotation(i, rope, n) for i, rope in enumerate(self._tape.ropes)]
        return Step(
            rows=n,
            logit_rows=len(batch.logit_rows),
            token_ids=self._token_ids.ctypes.data,
            row_numbers=self._row_numbers.ctypes.data,
            slots=self._slots.ctypes.data,
            logit_index=self._logit_index.ctypes.data,
            plans=(AttentionPlan * len(plans))(*plans),
            rotations=(Rotation * len(rotations))(*rotations),
        )

    def _rotation(self, index: int, rope: RopeSpec, n: int) -> Rotation:
        half = len(rope.frequencies)
        cos = self._array(f"cos {index}", (MAX_ROWS, half), np.float32)
        sin = self._array(f"sin {index}", (MAX_ROWS, half), np.float32)
        angles = np.outer(self._positions[:n], self._frequencies[index])
        np.cos(angles, out=cos[:n])
        np.sin(angles, out=sin[:n])
        if rope.magnitude != 1.0:
            cos[:n] *= np.float32(rope.magnitude)
            sin[:n] *= np.float32(rope.magnitude)
        return Rotation(cos=cos.ctypes.data, sin=sin.ctypes.data)

    def _plan(self, batch: ModelInput, window: int | None) -> AttentionPlan:
        """Cut the step's attention into items: tiles of rows in a prompt, spans of the cache in decoding."""
        items: list[AttentionItem] = []
        merges: list[AttentionMerge] = []
        row = slot = 0
        for i, s in enumerate(batch.sequences):
            end = s.n_cached + s.n_new
            first = 0 if window is None else max(0, s.n_cached + 1 - window) // SPAN
            spans = range(first, -(-end // SPAN))
            if s.n_new == 1 and len(spans) > 1 and slot + len(spans) <= self._max_slots:
                items += [
                    AttentionItem(row, 1, i, s.n_cached, span, span + 1, slot + j)
                    for j, span in enumerate(spans)
                ]
                merges.append(AttentionMerge(row, slot, len(spans)))
                slot += len(spans)
            else:
                for start in range(0, s.n_new, TILE_ROWS):
                    rows, position = min(TILE_ROWS, s.n_new - start), s.n_cached + start
                    begin = 0 if window is None else max(0, position + 1 - window) // SPAN
                    last = -(-(position + rows) // SPAN)
                    items.append(AttentionItem(row + start, rows, i, position, begin, last, -1))
            row += s.n_new
        return AttentionPlan(
            items=(AttentionItem * len(items))(*items),
            item_count=len(items),
            merges=(AttentionMerge * max(1, len(merges)))(*merges),
            merge_count=len(merges),
        )

    def _read_logits(self, rows: int) -> NDArray[np.float32]:
        memory = (ctypes.c_float * (rows * self.spec.vocab_size)).from_address(self._logits.address)
        return np.ndarray((rows, self.spec.vocab_size), dtype=np.float32, buffer=memoryview(memory))
