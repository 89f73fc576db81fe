"""Our native backend and llama.cpp on the same files, threads and machine, in alternating pairs.

    python bench/cpu_vs_llamacpp.py MODEL.gguf ... [--threads 2] [--pairs 5] [--contexts 32,512,2048]
                                    [--batches 8,32] [--variant avx2] [--out bench/results/NAME.md]

Needs llama-cpp-python (compiled natively; a benchmark dependency, not installed by the scripts). Every pair
runs ours and theirs one after the other, so that what a shared machine does to one it does to the other; the
ratio of a row is the median of the pairs' ratios. Absolute figures drift with the machine.
"""

import argparse
import datetime
import gc
import platform
import statistics
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import llama_cpp

from nanollama.backends.native.backend import NativeBackend
from nanollama.backends.native.library import Library
from nanollama.backends.native.locate import find_library
from nanollama.measure import Speed, measure_speed, read_bandwidth
from nanollama.model.checkpoint import open_gguf
from peer import Peer, decode_speed, prefill_speed


@dataclass(frozen=True)
class Row:
    """One line of the table: what was measured, and both sides' tokens a second, pair by pair."""

    model: str
    what: str
    ours: list[float]
    theirs: list[float]

    def cells(self) -> str:
        ratios = [a / b for a, b in zip(self.ours, self.theirs, strict=True)]
        ours, theirs = statistics.median(self.ours), statistics.median(self.theirs)
        return (
            f"| {self.model} | {self.what} | {ours:.0f} | {theirs:.0f} "
            f"| **{statistics.median(ratios):.2f}** | {min(ratios):.2f} - {max(ratios):.2f} |"
        )


def pairs(n: int, ours: Callable[[], float], theirs: Callable[[], float]) -> tuple[list[float], list[float]]:
    """``n`` alternating measurements, after one of each that does not count."""
    ours()
    theirs()
    results = [(ours(), theirs()) for _ in range(n)]
    return [a for a, _ in results], [b for _, b in results]


class Ours:
    """One model on the native backend."""

    def __init__(self, path: str, cache_tokens: int, threads: int, variant: str | None) -> None:
        checkpoint = open_gguf(path)
        self.backend = NativeBackend(
            checkpoint.spec,
            checkpoint.tensors,
            library=Library(find_library()),
            threads=threads,
            cache_tokens=cache_tokens,
            variant=variant,
        )
        checkpoint.close()

    def prefill(self, n: int) -> float:
        return self._measure(prefill_tokens=n, decode_tokens=1, context=1, batch=1).prefill_tok_s

    def decode(self, n: int, context: int, batch: int = 1) -> float:
        return self._measure(prefill_tokens=1, decode_tokens=n, context=context, batch=batch).decode_tok_s

    def _measure(self, **lengths: int) -> Speed:
        return measure_speed(self.backend, **lengths, repeats=1)


def compare(path: str, args: argparse.Namespace) -> list[Row]:
    """All rows of one file."""
    name, threads = Path(path).stem, args.threads
    contexts = [int(c) for c in args.contexts.split(",") if c]
    batches = [int(b) for b in args.batches.split(",") if b]
    longest = max([512 + 64, *(c + 128 for c in contexts)])
    ours = Ours(path, max([longest, *(b * 192 for b in batches)]), threads, args.variant)
    rows: list[Row] = []

    def row(what: str, peer: Peer, mine: Callable[[], float], theirs: Callable[[Peer], float]) -> None:
        rows.append(Row(name, what, *pairs(args.pairs, mine, lambda: theirs(peer))))
        print(rows[-1].cells(), flush=True)

    def prefill(peer: Peer, n: int) -> None:
        row(f"prefill {n}", peer, lambda: ours.prefill(n), lambda p: prefill_speed(p, n))

    def decode(peer: Peer, n: int, context: int, batch: int, what: str) -> None:
        row(what, peer, lambda: ours.decode(n, context, batch), lambda p: decode_speed(p, n, context, batch))

    peer = Peer(path, longest, threads)
    prefill(peer, 512)
    decode(peer, 128, 1, 1, "decode 128")
    for context in contexts:
        if context >= 4096:
            prefill(peer, context)
        decode(peer, 32, context, 1, f"decode 32 after {context}, theirs with flash attention")
    peer.close()
    if contexts:
        peer = Peer(path, longest, threads, flash=False)
        for context in contexts:
            decode(peer, 32, context, 1, f"decode 32 after {context}, theirs without")
        peer.close()
    for batch in batches:
        peer = Peer(path, batch * 96, threads, n_seqs=batch)
        decode(peer, 48, 32, batch, f"decode 48, {batch} sequences, total")
        peer.close()
    ours.backend.close()
    gc.collect()
    return rows


def conditions(args: argparse.Namespace, library: Library) -> str:
    """What the figures depend on."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    cpu_lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in cpu_lines if line.startswith("model name")), "")
    bandwidth = read_bandwidth(library, args.threads)

    return (
        f"Commit {commit}, {datetime.date.today()}, {cpu}, {platform.system()}, {args.threads} threads, "
        f"kernels {args.variant or library.variants()[0]}, llama-cpp-python {llama_cpp.__version__}, "
        f"read bandwidth {bandwidth:.1f} GB/s, {args.pairs} pairs."
    )


def main() -> None:
    """Measure, print the table, and write it down if asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--contexts", default="")
    parser.add_argument("--batches", default="")
    parser.add_argument("--variant")
    parser.add_argument("--out")
    args = parser.parse_args()
    lines = [
        conditions(args, Library(find_library())),
        "",
        "| model | what | ours tok/s | llama.cpp tok/s | ratio, median | least - most |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    print("\n".join(lines), flush=True)
    for path in args.models:
        lines += [row.cells() for row in compare(path, args)]
    if args.out:
        Path(args.out).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
