"""What the native backend's integer arithmetic costs: the same file on it and on torch in float32.

    python bench/quality.py MODEL.gguf ... --text TEXT [--n-ctx 512]
                            [--max-windows 40] [--tokens 64] [--keep FOLDER]

Prints a line for each file: both perplexities over the same windows, their difference in percent with its
standard error (over the windows, which both sides share), and on how many of eight prompts the greedy texts
are equal. ``--keep`` stores torch's side, which takes most of the time, and reads it from there later.
"""

import argparse
import hashlib
import json
import math
import statistics
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

from nanollama import LLM
from nanollama.perplexity import perplexity

PROMPTS = (
    "The capital of France is",
    "Water boils at a temperature of",
    "Once upon a time there was a",
    "The three primary colours are",
    "In 1969, the first man",
    "To bake bread you need",
    "def fibonacci(n):",
    "The opposite of hot is",
)


@dataclass(frozen=True)
class Side:
    """One backend's side: mean negative log-likelihood of each window, and the greedy texts."""

    windows: list[float]
    texts: list[str]

    @property
    def perplexity(self) -> float:
        return math.exp(statistics.mean(self.windows))


def main() -> None:
    """Measure every file and print its line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+")
    parser.add_argument("--text", required=True)
    parser.add_argument("--n-ctx", type=int, default=512)
    parser.add_argument("--max-windows", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--keep", type=Path)
    args = parser.parse_args()
    print("| model | windows | torch float32 | native | difference | equal greedy texts |")
    print("| --- | --- | --- | --- | --- | --- |")
    for model in args.models:
        print(line(Path(model).stem, torch_side(model, args), measured(model, "native", args)), flush=True)


def line(name: str, torch: Side, native: Side) -> str:
    """The row of one file."""
    differences = [b - a for a, b in zip(torch.windows, native.windows, strict=True)]
    error = statistics.stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else math.nan
    equal = sum(a == b for a, b in zip(torch.texts, native.texts, strict=True))
    return (
        f"| {name} | {len(differences)} | {torch.perplexity:.4f} | {native.perplexity:.4f} "
        f"| {100 * math.expm1(statistics.mean(differences)):+.3f} ± {100 * error:.3f} % "
        f"| {equal} of {len(PROMPTS)} |"
    )


def torch_side(model: str, args: argparse.Namespace) -> Side:
    """Torch's side, from the folder of ``--keep`` if it is there."""
    if args.keep is None:
        return measured(model, "torch", args)
    content = hashlib.sha256(Path(model).read_bytes() + Path(args.text).read_bytes()).hexdigest()[:16]
    kept = args.keep / f"{content}-{args.n_ctx}-{args.max_windows}-{args.tokens}.json"
    if not kept.exists():
        args.keep.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(asdict(measured(model, "torch", args))))
    return Side(**json.loads(kept.read_text()))


def measured(model: str, backend: str, args: argparse.Namespace) -> Side:
    """The likelihood of each window, and the greedy continuation of each prompt."""
    text = Path(args.text).read_text(encoding="utf-8")
    dtype = "float32" if backend == "torch" else None
    totals = [0.0]  # negative log-likelihood, in windows
    with LLM(model, backend=backend, dtype=dtype, n_ctx=args.n_ctx) as llm:
        perplexity(
            llm,
            text,
            n_ctx=args.n_ctx,
            max_windows=args.max_windows,
            on_window=lambda done, total, so_far: totals.append(done * math.log(so_far)),
        )
        greedy = {"temperature": 0.0, "repeat_penalty": 1.0, "max_tokens": args.tokens}
        with ThreadPoolExecutor(len(PROMPTS)) as pool:  # decoded together, which saves torch most of the time
            texts = list(pool.map(lambda prompt: llm.generate(prompt, **greedy).text, PROMPTS))
    return Side([b - a for a, b in pairwise(totals)], texts)


if __name__ == "__main__":
    main()
