"""What the native backend's integer arithmetic costs: the same file on it and on torch in float32.

    python bench/quality.py MODEL.gguf ... --text TEXT [--n-ctx 512] [--max-windows 40] [--tokens 64]

Prints a line for each file: both perplexities over the same windows, their difference in percent, and on how
many of eight prompts the greedy texts are equal.
"""

import argparse
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
    args = parser.parse_args()
    text = Path(args.text).read_text(encoding="utf-8")
    print("| model | torch float32 | native | difference | equal greedy texts |")
    print("| --- | --- | --- | --- | --- |")
    for model in args.models:
        torch_ppl, torch_texts = measured(model, "torch", text, args)
        native_ppl, native_texts = measured(model, "native", text, args)
        equal = sum(a == b for a, b in zip(torch_texts, native_texts, strict=True))
        difference = 100 * (native_ppl / torch_ppl - 1)
        print(
            f"| {Path(model).stem} | {torch_ppl:.4f} | {native_ppl:.4f} | {difference:+.2f} % "
            f"| {equal} of {len(PROMPTS)} |",
            flush=True,
        )


def measured(model: str, backend: str, text: str, args: argparse.Namespace) -> tuple[float, list[str]]:
    """Perplexity, and the greedy continuation of each prompt."""
    with LLM(
        model, backend=backend, dtype="float32" if backend == "torch" else None, n_ctx=args.n_ctx
    ) as llm:
        scored = perplexity(llm, text, n_ctx=args.n_ctx, max_windows=args.max_windows)
        greedy = {"temperature": 0.0, "repeat_penalty": 1.0, "max_tokens": args.tokens}
        return scored.perplexity, [llm.generate(prompt, **greedy).text for prompt in PROMPTS]


if __name__ == "__main__":
    main()
