"""The native backend: a model on the CPU as one tape, recorded when it is loaded and replayed for every step.

ModelInput in, float32 logits out; torch is not imported.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from nanollama.backends.native.inputs import MAX_ROWS, MAX_SEQUENCES, StepInputs, array_at
from nanollama.backends.native.kv_cache import BLOCK_TOKENS, PagedCache, wants_float32
from nanollama.backends.native.library import Attention, Library
from nanollama.backends.native.memory import Arena
from nanollama.backends.native.ops import NativeOps
from nanollama.backends.native.packer import NativePacker
from nanollama.backends.native.repack import RepackQueue
from nanollama.backends.native.tape import OpKind, Pool, Step, array_of
from nanollama.backends.ops import ModelInput
from nanollama.errors import UnsupportedError
from nanollama.model.checkpoint import PackedTensor
from nanollama.model.spec import ModelSpec
from nanollama.model.transformer import forward
from nanollama.model.weights import load_weights
from nanollama.sampling.edits import Edits

STEP_ROWS_PER_THREAD = 64
"""What so many rows hand from matrix to matrix stays in the caches; fewer would read weights too often."""

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
        self.step_rows = min(max(threads, 2) * STEP_ROWS_PER_THREAD, MAX_ROWS)
        self.num_blocks = -(-cache_tokens // BLOCK_TOKENS)
        self._kernels = library.kernels(variant)
        self._pool = Pool(library, threads)
        self._arena = Arena(library, huge_pages=True)
        self._scratch = Arena(library, huge_pages=False)
        self._repack = RepackQueue(self._pool)
        packer = NativePacker(library, self._repack, self._arena, spec.num_layers)
        self._weights = load_weights(spec, tensors, packer)
        self._repack.start()
        self.read_bytes = packer.n_bytes - (0 if spec.tied_head else packer.embedding_bytes)
        if (experts := spec.mlp.experts) is not None:
            self.read_bytes -= packer.expert_bytes * (experts.count - experts.per_token) // experts.count
        self.decoded = packer.decoded
        self._buffers: dict[str, int] = {}
        self._inputs = StepInputs(self._scratch.take, self.num_blocks)
        is_float32 = wants_float32(tensors.values())
        self._cache = PagedCache(self._arena, spec, self.num_blocks, is_float32=is_float32)
        ops = NativeOps(self._buffer, self._cache.layers, self._bind_attention, MAX_ROWS)
        self._logits = forward(ops, spec, self._weights)
        ops.choose(self._logits)
        self._inputs.bind(ops.tape.windows, ops.tape.ropes)
        self._tape = ops.tape  # what the records point to must stay alive
        self._ops = array_of(ops.tape.ops)

    def finish_loading(self) -> None:
        """Return when all weights are packed; every step waits for that too."""
        self._repack.wait()

    def step(self, batch: ModelInput) -> NDArray[np.float32]:
        """Run one step; the logits ``[len(batch.logit_rows), vocab]``, valid until the next step."""
        self._pool.replay(self._kernels, self._ops, self._fill(batch))
        return self._read_logits(len(batch.logit_rows))

    def best(
        self, batch: ModelInput, k: int = 1, edits: Edits | None = None
    ) -> tuple[NDArray[np.integer], NDArray[np.float32]]:
        """Run one step; of each logit row the ids of the ``k`` highest logits, and the logits."""
        step = self._fill(batch)
        ids, logits = self._inputs.ask_for_best(len(batch.logit_rows), k, edits)
        self._pool.replay(self._kernels, self._ops, step)
        return ids, logits

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

    def _bind_attention(self, call: Attention) -> None:
        call.block_tables = self._inputs.block_tables.ctypes.data
        call.block_table_stride = self.num_blocks
        heads, dim = self.spec.attention.num_heads, self._cache.head_dim
        call.partials = self._buffer("partials", self._inputs.max_slots * heads * (dim + 2) * 4)

    def _fill(self, batch: ModelInput) -> Step:
        """Make the step's copies, and write its inputs where the tape reads them."""
        self.finish_loading()
        self._cache.copy_blocks(batch.copies)
        return self._inputs.fill(batch)

    def _read_logits(self, rows: int) -> NDArray[np.float32]:
        return array_at(self._logits.address, (rows, self.spec.vocab_size), np.float32)
