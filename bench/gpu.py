"""The torch backend on a GPU: first whether it is right, then how fast it is beside what its memory allows.

    PYTHONPATH=src python bench/gpu.py [--shape llama-3.1-8b] [--dtype bfloat16] [--only eager,graphs]

Prints one JSON object a line, the figures last, and writes them to $OUT/gpu.jsonl where that is set. Toys of
every structure must equal the slowest decoder in every data type, alone and in a crowd, compiled and not. The
speeds are of random weights in the shape of a real model.
"""

import argparse
import gc
import json
import os
import statistics
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from nanollama import reference
from nanollama.backends.ops import ModelInput, SequenceInput
from nanollama.backends.torch_backend import TorchBackend, choose_device
from nanollama.engine.engine import Engine, EngineConfig
from nanollama.measure import measure_speed
from nanollama.model.random_weights import random_tensors
from nanollama.model.shapes import shape_spec
from nanollama.types import Request, SamplingParams
from toys import SPECS, VOCAB, make_toy

LIMITS = {"float32": 1e-3, "float16": 5e-3, "bfloat16": 6e-2}
"""The largest error of logits, as a share of their root mean square."""

Facts = dict[str, Any]


def toys_equal_the_reference(device: str) -> Iterator[Facts]:
    """Every toy in every data type: a prompt in two chunks, and one decoded token."""
    for kind in SPECS:
        toy = make_toy(kind)
        ids = tuple(int(i) for i in np.random.default_rng(1).integers(0, VOCAB, 75))
        params = {name: torch.from_numpy(array) for name, array in toy.arrays.items()}
        expected = reference.logits(toy.spec, params, ids).numpy()
        for dtype, limit in LIMITS.items():
            backend = TorchBackend(toy.spec, toy.tensors, device=device, dtype=dtype, cache_tokens=512)
            rows = []
            for start, end in ((0, 40), (40, 74), (74, 75)):
                sequence = SequenceInput(end - start, start, (4, 9, 1)[: -(-end // 32)])
                rows.append(backend.step(ModelInput(ids[start:end], (sequence,), tuple(range(end - start)))))
            error = np.sqrt(np.mean((np.concatenate(rows) - expected) ** 2) / np.mean(expected**2))
            yield {"check": f"{kind} {dtype}", "error": float(error), "ok": bool(error < limit)}


def a_crowd_changes_nothing(device: str) -> Iterator[Facts]:
    """Eight greedy requests through the engine, alone and together, and again from the cache, in float32."""
    for kind in ("llama", "gemma3"):
        toy = make_toy(kind)
        requests = [
            Request(
                tuple(int(i) for i in np.random.default_rng(seed).integers(0, VOCAB, 9 + seed)),
                SamplingParams(),
                max_tokens=24,
                stop_ids=frozenset(),
            )
            for seed in range(8)
        ]
        texts: dict[str, list[list[int]]] = {}
        for variant in ({}, {"compile": True}):
            backend = TorchBackend(
                toy.spec, toy.tensors, device=device, dtype="float32", cache_tokens=2048, **variant
            )
            name = " ".join(variant) or "eager"
            for crowd in (1, 8):
                engine = Engine(backend, EngineConfig(n_ctx=256, token_budget=64, max_sequences=crowd))
                for when in ("", ", again"):
                    running = [engine.submit(request) for request in requests]
                    tokens = [[event.token_id for event in each] for each in running]
                    texts[f"{name}, {crowd} together{when}"] = tokens
                engine.close()
        first = next(iter(texts.values()))
        for name, found in texts.items():
            yield {"check": f"engine, {kind}, {name}", "ok": found == first}


def bounds(device: str, dtype: torch.dtype) -> Facts:
    """What the device can do: bytes moved by a copy, and multiply-accumulates of a large product."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    copy_s = seconds(lambda: target.copy_(source))
    a, b = (
        torch.randn(8192, 8192, device=device, dtype=dtype),
        torch.randn(8192, 8192, device=device, dtype=dtype),
    )
    product_s = seconds(lambda: a @ b)
    return {"copy_gb_s": 2 * source.nbytes / copy_s / 1e9, "mac_rate": 8192**3 / product_s}


def seconds(work: Callable[[], object], repeats: int = 7) -> float:
    """The median time of some device work, after two runs that do not count."""
    times = []
    for _ in range(repeats + 2):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


def synchronisations(backend: TorchBackend, batch: ModelInput) -> list[str]:
    """Where the host waits for the device in one step, after one that does not count."""
    backend.best(batch)
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        backend.best(batch)
        torch.cuda.set_sync_debug_mode("default")
    return [f"{w.filename.rpartition('/')[2]}:{w.lineno}" for w in caught if "synchroniz" in str(w.message)]


def speeds(
    args: argparse.Namespace, device: str, limits: Facts, name: str, variant: Facts
) -> Iterator[Facts]:
    """Prefill and decode of one way to run the shape."""
    spec = shape_spec(args.shape)
    torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    backend = TorchBackend(
        spec, random_tensors(spec, "BF16"), device=device, dtype=args.dtype, cache_tokens=32 * 512, **variant
    )
    torch.cuda.synchronize()
    load_s = time.perf_counter() - start
    step = ModelInput((1, 2), (SequenceInput(1, 40, (0, 1)), SequenceInput(1, 7, (2,))), (0, 1))
    yield {"way": name, "load_s": load_s, "synchronisations": synchronisations(backend, step)}
    for batch in (1, 32):
        first_s = -time.perf_counter()
        measure_speed(backend, prefill_tokens=1, decode_tokens=2, context=128, batch=batch, repeats=1)
        first_s += time.perf_counter()
        speed = measure_speed(
            backend, prefill_tokens=1, decode_tokens=64, context=128, batch=batch, repeats=3
        )
        step_s = batch / speed.decode_tok_s
        yield {
            "way": name,
            "batch": batch,
            "decode_tok_s": speed.decode_tok_s,
            "step_ms": 1e3 * step_s,
            "bandwidth_share": backend.read_bytes / step_s / limits["copy_gb_s"] / 1e9,
            "first_s": first_s,
        }
    for chunk in (512, 2048):
        measure_speed(
            backend, prefill_tokens=2048, decode_tokens=1, context=1, batch=1, repeats=1, chunk=chunk
        )
        speed = measure_speed(
            backend, prefill_tokens=2048, decode_tokens=1, context=1, batch=1, repeats=3, chunk=chunk
        )
        yield {"way": name, "prefill": 2048, "chunk": chunk, "prefill_tok_s": speed.prefill_tok_s}
    yield {"way": name, "peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9}
    backend.close()


WAYS: dict[str, Facts] = {
    "eager": {},
    "compiled": {"compile": True, "graphs": False},
    "graphs": {"compile": True, "graphs": True},
}


def main() -> None:
    """Run everything; exit 1 if something was wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="llama-3.1-8b")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--only", default=",".join(WAYS), help="which ways to measure")
    args = parser.parse_args()
    device = choose_device("cuda")
    torch.backends.cuda.matmul.allow_tf32 = False
    out = open(Path(os.environ["OUT"]) / "gpu.jsonl", "w") if "OUT" in os.environ else None  # noqa: SIM115  # to the end
    failed = False

    def report(facts: Iterator[Facts]) -> None:
        nonlocal failed
        try:
            for each in facts:
                failed |= not each.get("ok", True)
                show(each)
        except Exception:
            failed = True
            show({"failed": traceback.format_exc()[-1500:]})
        gc.collect()
        torch.cuda.empty_cache()

    def show(facts: Facts) -> None:
        line = json.dumps({k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in facts.items()})
        print(line, flush=True)
        if out is not None:
            out.write(line + "\n")
            out.flush()

    show({"device": torch.cuda.get_device_name(), "torch": torch.__version__})
    report(toys_equal_the_reference(device))
    report(a_crowd_changes_nothing(device))
    limits = bounds(device, getattr(torch, args.dtype))
    show(limits)
    for name in args.only.split(","):
        report(speeds(args, device, limits, name, WAYS[name]))
    sys.exit(failed)


if __name__ == "__main__":
    main()
