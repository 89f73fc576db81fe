"""Measuring a loaded model and the machine under it: speeds beside the bounds that memory and arithmetic set.

Times are medians over repetitions, of steps without sampling or text. A figure without its bound says little:
decoding can't be faster than memory delivers the weights, nor prefilling faster than the cores multiply.
"""

import ctypes
import resource
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from nanollama.backends.native.library import Library
from nanollama.backends.ops import Backend, ModelInput, SequenceInput
from nanollama.backends.select import LoadedBackend
from nanollama.errors import UsageError
from nanollama.model.spec import ModelSpec

READ_BYTES = 256 << 20
READ_REPEATS = 5


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens a second; decoding counts the tokens of all sequences of a batch."""

    prefill_tok_s: float
    decode_tok_s: float


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the machine can do: GB/s of memory and multiply-accumulates a second, measured."""

    read_gb_s: float
    mac_rate: float

    def decode_share(self, speed: Speed, backend: Backend, batch: int) -> float:
        """How much of the bandwidth decoding uses: the weights are read once for all sequences of a step."""
        return speed.decode_tok_s / batch * backend.read_bytes / (self.read_gb_s * 1e9)

    def prefill_share(self, speed: Speed, spec: ModelSpec) -> float:
        """How much of the arithmetic prefilling uses, that of attention not counted."""
        return speed.prefill_tok_s * macs_per_token(spec) / self.mac_rate


def machine_bounds(loaded: LoadedBackend, threads: int) -> Bounds:
    """The bounds of what a backend runs on, measured with its own means: some seconds."""
    if loaded.name == "native":
        from nanollama.backends.native.locate import find_library
        from nanollama.backends.native.rate import mac_rate as native_rate

        library = Library(find_library())
        return Bounds(read_bandwidth(library, threads), native_rate(library, threads))
    from nanollama.backends.torch_bounds import bandwidth, mac_rate

    return Bounds(bandwidth(loaded.device), mac_rate(loaded.device, loaded.dtype))


def macs_per_token(spec: ModelSpec) -> int:
    """Multiply-accumulates with the weights of all layers for one token of a prompt: it needs no logits."""
    a, hidden, inner = spec.attention, spec.hidden_size, spec.mlp.intermediate_size
    experts = spec.mlp.experts
    mlp = 3 * hidden * inner
    if experts is not None:
        mlp = mlp * experts.per_token + hidden * experts.count
    return spec.num_layers * (hidden * (2 * a.q_size + 2 * a.kv_size) + mlp)


def measure_speed(
    backend: Backend,
    *,
    prefill_tokens: int,
    decode_tokens: int,
    context: int,
    batch: int,
    repeats: int,
    chunk: int | None = None,
) -> Speed:
    """Median speed of prefilling one prompt, and of decoding ``batch`` sequences after ``context`` tokens.

    Prompts go ``chunk`` tokens a step, ``None`` for as many as the engine takes. A decode step ends with the
    likeliest tokens.

    Raises:
        UsageError: the cache is too small for what was asked.
    """
    needed = max(prefill_tokens, batch * _whole_blocks(backend, context + decode_tokens))
    if needed > backend.num_blocks * backend.block_tokens:
        raise UsageError(
            f"this takes a cache of {needed} tokens and there is one of "
            f"{backend.num_blocks * backend.block_tokens}; use a larger --ctx or measure less"
        )
    prefill, decode = [], []
    _prefill(backend, 32, 0)  # the first step pays for pages and threads
    for _ in range(repeats):
        prefill.append(prefill_tokens / _seconds(lambda: _prefill(backend, prefill_tokens, 0, chunk)))
        decode.append(batch * decode_tokens / _decode(backend, decode_tokens, context, batch))
    return Speed(statistics.median(prefill), statistics.median(decode))


def read_bandwidth(library: Library, threads: int) -> float:
    """GB/s at which ``threads`` threads together read memory that is in no cache: the best of several."""
    share = READ_BYTES // threads
    start = library.nl_arena_alloc(READ_BYTES, True)
    if not start:
        raise UsageError("there is too little free memory to measure the read bandwidth")
    try:
        ctypes.memset(start, 1, READ_BYTES)
        with ThreadPoolExecutor(threads) as pool:

            def read_all() -> None:
                list(pool.map(lambda i: library.nl_read(start + i * share, share), range(threads)))

            read_all()
            return READ_BYTES / min(_seconds(read_all) for _ in range(READ_REPEATS)) / 1e9
    finally:
        library.nl_arena_free(start, READ_BYTES)


def peak_rss_mb() -> float:
    """The most memory this process has held so far, in MB (10^6 bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def _prefill(backend: Backend, n_tokens: int, first_block: int, chunk: int | None = None) -> None:
    vocab, chunk = backend.spec.vocab_size, chunk or backend.step_rows
    for start in range(0, n_tokens, chunk):
        n = min(chunk, n_tokens - start)
        blocks = -(-(start + n) // backend.block_tokens)
        sequence = SequenceInput(n, start, tuple(range(first_block, first_block + blocks)))
        # Scattered ids, so that embedding rows do not all come from one page.
        ids = tuple((start + i) * 7919 % vocab for i in range(n))
        backend.step(ModelInput(ids, (sequence,), (n - 1,) if start + n == n_tokens else ()))


def _decode(backend: Backend, n_tokens: int, context: int, batch: int) -> float:
    """Seconds for ``n_tokens`` decode steps of ``batch`` sequences that hold ``context`` tokens each."""
    each = _whole_blocks(backend, context + n_tokens) // backend.block_tokens
    for i in range(batch):
        _prefill(backend, context, i * each)
    rows = tuple(range(batch))

    def step(done: int) -> None:
        n_cached = context + done
        blocks = n_cached // backend.block_tokens + 1
        sequences = tuple(SequenceInput(1, n_cached, tuple(range(i * each, i * each + blocks))) for i in rows)
        ids = tuple((done * 7919 + i) % backend.spec.vocab_size for i in rows)
        backend.best(ModelInput(ids, sequences, rows))

    def run() -> None:
        for done in range(n_tokens):
            step(done)

    return _seconds(run)


def _whole_blocks(backend: Backend, n_tokens: int) -> int:
    return -(-n_tokens // backend.block_tokens) * backend.block_tokens


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
