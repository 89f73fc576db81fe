"""What the CPU can multiply: a kernel library and a thread count in, multiply-accumulates a second out."""

import time

from nanollama.backends.native.library import Library
from nanollama.backends.native.memory import Arena
from nanollama.backends.native.ops import FLOAT, NativeOps, Value
from nanollama.backends.native.packer import NativePacker
from nanollama.backends.native.repack import RepackQueue
from nanollama.backends.native.tape import AttentionPlan, Pool, Rotation, Step, array_of
from nanollama.model.checkpoint import PackedTensor
from nanollama.model.random_weights import random_blocks
from nanollama.quant.formats import FORMATS

SIZE, ROWS = 2048, 512
FORMAT = "Q4_0"
"""Four bits multiply fastest: their products can be summed longest before they have to be widened."""
REPEATS = 7


def mac_rate(library: Library, threads: int) -> float:
    """The best of several products of a matrix of SIZE by SIZE that stays in the cache, with ROWS rows."""
    fmt = FORMATS[FORMAT]
    tensor = PackedTensor("random", fmt, (SIZE, SIZE), lambda: random_blocks(fmt, SIZE * SIZE, 1.0, 0))
    pool, arena = Pool(library, threads), Arena(library, huge_pages=True)
    try:
        queue = RepackQueue(pool)
        weight = NativePacker(library, queue, arena, num_layers=1).matrix([tensor], [])
        queue.start()
        queue.wait()
        ops = NativeOps(lambda name, n_bytes: arena.take(n_bytes), [], lambda call: None, ROWS)
        ops.linear(Value(arena.take(ROWS * SIZE * FLOAT), SIZE, SIZE), weight)
        tape = array_of(ops.tape.ops)
        step = Step(rows=ROWS, logit_rows=0, plans=(AttentionPlan * 0)(), rotations=(Rotation * 0)())
        times = []
        for _ in range(REPEATS + 1):
            start = time.perf_counter()
            pool.replay(library.kernels(), tape, step)
            times.append(time.perf_counter() - start)
        return ROWS * SIZE * SIZE / min(times[1:])
    finally:
        pool.close()
        arena.close()
