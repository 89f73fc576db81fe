"""``bench``: a model in, its prefill and decode speed out, beside what this machine's memory allows."""

import argparse
import json
import sys
from functools import partial
from typing import Any

from nanollama.cli.options import CONTEXT, LOADING, Setting, add_settings, given, whole
from nanollama.cli.run import load
from nanollama.cli.terminal import Terminal

LENGTHS = (
    Setting("prefill_tokens", ("--prefill",), "N", "tokens of the prompt (512)", partial(whole, low=1)),
    Setting("decode_tokens", ("--decode",), "N", "tokens decoded after it (128)", partial(whole, low=1)),
    Setting("context", ("--context",), "N", "tokens in the cache before decoding (1)", partial(whole, low=1)),
    Setting("batch", ("--batch",), "N", "sequences decoded together (1)", partial(whole, low=1, high=256)),
    Setting("repeats", ("--repeats",), "N", "repetitions; the median counts (5)", partial(whole, low=1)),
)
DEFAULTS = {"prefill_tokens": 512, "decode_tokens": 128, "context": 1, "batch": 1, "repeats": 5}


def add_bench_parser(subparsers: "argparse._SubParsersAction[Any]") -> None:
    parser = subparsers.add_parser(
        "bench",
        help="measure prefill and decode speed",
        description="Median speed of MODEL, beside the read bandwidth of this machine, which bounds "
        "decoding: every weight is read once for each token, or once for all tokens of a batch.",
    )
    parser.add_argument("model", metavar="MODEL", help="a name or a .gguf file")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_settings(parser, (*LENGTHS, *LOADING, CONTEXT))
    parser.set_defaults(handler=bench_command)


def bench_command(args: argparse.Namespace) -> int:
    lengths = {**DEFAULTS, **given(args, LENGTHS)}
    loading = given(args, (*LOADING, CONTEXT))
    if "n_ctx" not in loading:
        # A batch needs a cache for all its sequences, rounded up to whole blocks.
        each = lengths["context"] + lengths["decode_tokens"] + 64
        loading["n_ctx"] = max(lengths["prefill_tokens"], lengths["batch"] * each, 512)
    terminal = Terminal(sys.stdout, sys.stderr)
    with load(args.model, loading, terminal) as llm:
        from nanollama.backends.native.library import Library
        from nanollama.backends.native.locate import find_library
        from nanollama.backends.select import physical_cores
        from nanollama.measure import measure_speed, peak_rss_mb, read_bandwidth

        threads = loading.get("threads") or physical_cores()
        with terminal.status("Measuring …"):
            backend = llm.loaded.backend
            speed = measure_speed(backend, **lengths)
            rss_mb = peak_rss_mb()  # before the memory that measuring the bandwidth takes
            read_gb_s = share = None
            if llm.loaded.name == "native":
                read_gb_s = read_bandwidth(Library(find_library()), threads)
                share = speed.decode_tok_s / lengths["batch"] * backend.read_bytes / (read_gb_s * 1e9)
        facts = {
            "model": llm.name,
            "prefill_tok_s": round(speed.prefill_tok_s, 1),
            "decode_tok_s": round(speed.decode_tok_s, 1),
            "prefill_tokens": lengths["prefill_tokens"],
            "decode_tokens": lengths["decode_tokens"],
            "context": lengths["context"],
            "batch": lengths["batch"],
            "threads": threads,
            "backend": f"{llm.loaded.name} {llm.device} {llm.dtype}",
            "read_gb_s": rounded(read_gb_s),
            "decode_bandwidth_share": rounded(share, 3),
            "load_s": round(llm.load_s, 3),
            "rss_mb": round(rss_mb, 1),
        }
    terminal.write((json.dumps(facts) if args.json else described(facts)) + "\n")
    return 0


def rounded(number: float | None, digits: int = 1) -> float | None:
    return None if number is None else round(number, digits)


def described(facts: dict[str, Any]) -> str:
    """The figures in words, each with its conditions."""
    together = f", {facts['batch']} sequences together" if facts["batch"] > 1 else ""
    lines = [
        f"{facts['model']} on {facts['backend']}, {facts['threads']} threads",
        f"prefill  {facts['prefill_tok_s']:9.1f} tok/s   ({facts['prefill_tokens']} tokens)",
        f"decode   {facts['decode_tok_s']:9.1f} tok/s   ({facts['decode_tokens']} tokens after "
        f"{facts['context']}{together})",
    ]
    if facts["read_gb_s"] is not None:
        lines.append(
            f"memory   {facts['read_gb_s']:9.1f} GB/s    (read bandwidth; decoding uses "
            f"{facts['decode_bandwidth_share']:.0%} of it)"
        )
    lines.append(f"loaded in {facts['load_s']:.2f} s, {facts['rss_mb']:.0f} MB resident at most")
    return "\n".join(lines)
