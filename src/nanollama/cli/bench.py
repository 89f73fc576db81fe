"""``bench``: a model or a shape in, its prefill and decode speed out, beside what this machine can do."""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from nanollama.cli.options import CONTEXT, LOADING, Setting, add_settings, choice, given, whole
from nanollama.cli.parsers import MODEL_HELP
from nanollama.cli.run import load
from nanollama.cli.terminal import Terminal
from nanollama.errors import UsageError
from nanollama.quant.plan import AT_LOAD

if TYPE_CHECKING:
    from nanollama.backends.select import LoadedBackend

LENGTHS = (
    Setting("prefill_tokens", ("--prefill",), "N", "tokens of the prompt (512)", partial(whole, low=1)),
    Setting("decode_tokens", ("--decode",), "N", "tokens decoded after it (128)", partial(whole, low=1)),
    Setting("context", ("--context",), "N", "tokens in the cache before decoding (1)", partial(whole, low=1)),
    Setting("batch", ("--batch",), "N", "sequences decoded together (1)", partial(whole, low=1, high=256)),
    Setting("repeats", ("--repeats",), "N", "repetitions; the median counts (5)", partial(whole, low=1)),
)
DEFAULTS = {"prefill_tokens": 512, "decode_tokens": 128, "context": 1, "batch": 1, "repeats": 5}

WEIGHTS = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")
SHAPE = (
    Setting("shape", ("--shape",), "NAME", "instead of MODEL: random weights in the shape of one", str),
    Setting(
        "weights",
        ("--weights",),
        "TYPE",
        "their type (BF16), such as Q8_0 or Q4_K",
        partial(choice, choices=WEIGHTS),
    ),
)


@dataclass(frozen=True, slots=True)
class Measured:
    """What is measured: a loaded backend, what it is called, and how long it took to load."""

    name: str
    loaded: "LoadedBackend"
    load_s: float


def add_bench_parser(subparsers: "argparse._SubParsersAction[Any]") -> None:
    parser = subparsers.add_parser(
        "bench",
        help="measure prefill and decode speed",
        description="Median speed of MODEL, beside the bounds of this machine: decoding reads every weight "
        "once for each token, or once for all tokens of a batch, and prefilling multiplies with it.",
    )
    parser.add_argument("model", metavar="MODEL", nargs="?", help=MODEL_HELP)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_settings(parser, (*SHAPE, *LENGTHS, *LOADING, CONTEXT))
    parser.set_defaults(handler=bench_command)


def bench_command(args: argparse.Namespace) -> int:
    lengths = {**DEFAULTS, **given(args, LENGTHS)}
    loading = given(args, (*LOADING, CONTEXT))
    if (args.model is None) == (args.shape is None):
        raise UsageError("bench takes a MODEL or the --shape of one; nanollama bench --help shows how")
    if args.weights is not None and (args.shape is None or args.quantize is not None):
        raise UsageError("--weights is the type of the random weights of a --shape, without --quantize")
    loading |= room(lengths, loading.get("n_ctx"))
    terminal = Terminal(sys.stdout, sys.stderr)
    if args.shape is None:
        with load(args.model, loading, terminal) as llm:
            return report(Measured(llm.name, llm.loaded, llm.load_s), lengths, loading, args.json, terminal)
    with random_model(args.shape, args.weights, loading, terminal) as measured:
        return report(measured, lengths, loading, args.json, terminal)


def room(lengths: Mapping[str, int], n_ctx: int | None) -> dict[str, int]:
    """The context window for the longest sequence, and the cache for all of them, in whole blocks.

    Raises:
        UsageError: ``--ctx`` is given and too small.
    """
    longest = lengths["context"] + lengths["decode_tokens"]
    needed = max(lengths["prefill_tokens"], longest)
    if n_ctx is not None and n_ctx < needed:
        raise UsageError(f"--ctx is {n_ctx} and what is to be measured takes {needed} tokens; leave it out")
    cache = max(lengths["prefill_tokens"], lengths["batch"] * (longest + 64), 512)
    return {"n_ctx": n_ctx or max(needed, 8), "cache_tokens": max(cache, n_ctx or 0)}


@contextmanager
def random_model(
    shape: str, weights: str | None, loading: Mapping[str, Any], terminal: Terminal
) -> Iterator[Measured]:
    """A model of random weights; loading settings as for a real one. Raises like ``LLM``."""
    from nanollama.backends.select import BackendChoice, load_backend
    from nanollama.model.random_weights import random_tensors
    from nanollama.model.shapes import shape_spec

    packed = weights or AT_LOAD.get(loading.get("quantize", ""), "BF16")
    choice = BackendChoice(
        loading.get("backend", "auto"),
        loading.get("device", "auto"),
        loading.get("dtype"),
        loading.get("threads"),
        loading.get("compile", False),
        keep_packed=packed.startswith("Q"),
    )
    spec = shape_spec(shape).for_context(loading["n_ctx"])
    with terminal.status(f"Making the weights of {shape} …"):
        start = time.perf_counter()
        tensors = random_tensors(spec, packed)
        loaded = load_backend(
            choice, spec, tensors, cache_tokens=loading["cache_tokens"], notice=terminal.interrupt
        )
        loaded.finish()
        load_s = time.perf_counter() - start
    try:
        yield Measured(f"{shape}, random {packed}", loaded, load_s)
    finally:
        loaded.backend.close()


def report(
    measured: Measured,
    lengths: Mapping[str, int],
    loading: Mapping[str, Any],
    as_json: bool,
    terminal: Terminal,
) -> int:
    """Measure, and print the figures."""
    from nanollama.backends.select import thread_count
    from nanollama.measure import machine_bounds, measure_speed, peak_rss_mb

    loaded, backend = measured.loaded, measured.loaded.backend
    threads = thread_count(loading.get("threads"))
    with terminal.status("Measuring …"):
        speed = measure_speed(backend, **lengths)
        rss_mb = peak_rss_mb()  # before the memory that measuring the bounds takes
        bounds = machine_bounds(loaded, threads)
    facts = {
        "model": measured.name,
        "prefill_tok_s": round(speed.prefill_tok_s, 1),
        "decode_tok_s": round(speed.decode_tok_s, 1),
        "prefill_tokens": lengths["prefill_tokens"],
        "decode_tokens": lengths["decode_tokens"],
        "context": lengths["context"],
        "batch": lengths["batch"],
        "threads": threads,
        "backend": loaded.name,
        "device": loaded.device,
        "dtype": loaded.dtype,
        "read_gb_s": round(bounds.read_gb_s, 1),
        "decode_bandwidth_share": round(bounds.decode_share(speed, backend, lengths["batch"]), 3),
        "mac_rate": round(bounds.mac_rate),
        "prefill_mac_share": round(bounds.prefill_share(speed, backend.spec), 3),
        "load_s": round(measured.load_s, 3),
        "rss_mb": round(rss_mb, 1),
    }
    terminal.write((json.dumps(facts) if as_json else described(facts)) + "\n")
    return 0


def described(facts: dict[str, Any]) -> str:
    """The figures in words, each with its conditions."""
    together = f", {facts['batch']} sequences together" if facts["batch"] > 1 else ""
    return "\n".join(
        [
            f"{facts['model']} on {facts['backend']} {facts['device']} {facts['dtype']}, "
            f"{facts['threads']} threads",
            f"prefill  {facts['prefill_tok_s']:9.1f} tok/s   ({facts['prefill_tokens']} tokens)",
            f"decode   {facts['decode_tok_s']:9.1f} tok/s   ({facts['decode_tokens']} tokens after "
            f"{facts['context']}{together})",
            f"multiply {facts['mac_rate'] / 1e9:9.1f} GMAC/s  (the machine's own rate; prefilling uses "
            f"{facts['prefill_mac_share']:.0%} of it)",
            f"memory   {facts['read_gb_s']:9.1f} GB/s    (its bandwidth; decoding uses "
            f"{facts['decode_bandwidth_share']:.0%} of it)",
            f"loaded in {facts['load_s']:.2f} s, {facts['rss_mb']:.0f} MB resident at most",
        ]
    )
