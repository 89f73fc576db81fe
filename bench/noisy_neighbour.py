"""Decoding beside a busy process: how much of its speed is left, ours and llama.cpp's.

    python bench/noisy_neighbour.py MODEL.gguf [--threads 2] [--pairs 5] [--seconds 2] [--neighbours 1]
                                    [--out bench/results/noisy_neighbour.md]

Each pair measures ours and llama.cpp's alone, then both beside a process that only counts, at the same
priority. A measurement decodes for so many seconds, not so many tokens: an engine that crawls beside the
neighbour must not make the benchmark crawl. What is kept is the median of the pairs' shares. The share of the
cores that a fair scheduler would leave is printed as the bound, and how many cores each engine kept busy:
one that waits by spinning uses its share without getting on.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from cpu_vs_llamacpp import Ours, conditions
from nanollama.backends.native.library import Library
from nanollama.backends.native.locate import find_library
from peer import Peer, decode_speed

CONTEXT, TOKENS = 32, 8
"""Tokens in the cache at first, and those decoded between two looks at the clock."""
CACHE_TOKENS = 1024


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """So many processes that only count, each in a session of its own as another terminal's would be."""
    command = [sys.executable, "-c", "while True: pass"]
    children = [subprocess.Popen(command, start_new_session=True) for _ in range(count)]
    try:
        time.sleep(0.2)  # they have to start, and the scheduler has to find them places
        yield
    finally:
        for child in children:
            child.kill()
            child.wait()


@dataclass
class Engine:
    """One side: what decodes ``TOKENS`` tokens and tells their speed, and what was measured of it."""

    name: str
    decode: Callable[[], float]
    alone: list[float] = field(default_factory=list)
    beside: list[float] = field(default_factory=list)
    cores: list[float] = field(default_factory=list)

    def measure(self, seconds: float) -> tuple[float, float]:
        """Tokens a second over at least ``seconds`` of decoding, and the cores that it kept busy."""
        tokens, spent = 0, 0.0
        start, cpu = time.perf_counter(), time.process_time()
        while time.perf_counter() < start + seconds:
            tokens += TOKENS
            spent += TOKENS / self.decode()
        return tokens / spent, (time.process_time() - cpu) / (time.perf_counter() - start)

    def measure_beside(self, seconds: float) -> None:
        tok_s, cores = self.measure(seconds)
        self.beside.append(tok_s)
        self.cores.append(cores)

    def cells(self) -> str:
        kept = [100 * b / a for a, b in zip(self.alone, self.beside, strict=True)]
        return (
            f"| {self.name} | {median(self.alone):.0f} | {median(self.beside):.0f} "
            f"| **{median(kept):.0f} %** | {min(kept):.0f} - {max(kept):.0f} % | {median(self.cores):.2f} |"
        )


def fair_share(threads: int, count: int) -> float:
    """How much of the cores' time ``threads`` threads keep when ``count`` others want them as well."""
    cores = len(os.sched_getaffinity(0))
    alone, beside = min(threads, cores), min(threads, cores * threads / (threads + count))
    return beside / alone


def main() -> None:
    """Measure both sides in turn, print the table, and write it down if asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--neighbours", type=int, default=1)
    parser.add_argument("--variant")
    parser.add_argument("--out")
    args = parser.parse_args()
    fair = 100 * fair_share(args.threads, args.neighbours)
    lines = [
        conditions(args, Library(find_library())),
        f"Busy processes: {args.neighbours}; a fair scheduler would leave {fair:.0f} % of the cores' time.",
        "",
        "| engine | alone, tok/s | beside, tok/s | kept, median | least - most | cores busy beside |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    print("\n".join(lines), flush=True)
    ours = Ours(args.model, CACHE_TOKENS, args.threads, args.variant)
    peer = Peer(args.model, CACHE_TOKENS, args.threads)
    engines = (
        Engine("nanollama", lambda: ours.decode(TOKENS, CONTEXT)),
        Engine("llama.cpp", lambda: decode_speed(peer, TOKENS, CONTEXT)),
    )
    for engine in engines:
        engine.measure(args.seconds / 2)  # the first steps pay for pages and threads
    for _ in range(args.pairs):
        for engine in engines:
            engine.alone.append(engine.measure(args.seconds)[0])
        with neighbours(args.neighbours):
            for engine in engines:
                engine.measure_beside(args.seconds)
    for engine in engines:
        lines.append(engine.cells())
        print(lines[-1], flush=True)
    if args.out:
        Path(args.out).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
