"""``perplexity``: a model and a text file in, one figure out, with a progress bar on the way."""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from nanollama.cli.options import LOADING, Setting, add_settings, given, whole
from nanollama.cli.parsers import MODEL_HELP
from nanollama.cli.progress import ProgressBar
from nanollama.cli.run import load
from nanollama.cli.terminal import Terminal
from nanollama.errors import UsageError

OnWindow = Callable[[int, int, float], None]
"""Called after each window with its number from 1, the number of windows and the perplexity so far."""

WINDOWS = (
    Setting("n_ctx", ("--n-ctx", "--ctx"), "N", "tokens in a window (512)", partial(whole, low=8)),
    Setting("max_windows", ("--max-windows",), "N", "score only the first N windows", partial(whole, low=1)),
)


def add_perplexity_parser(subparsers: "argparse._SubParsersAction[Any]") -> None:
    parser = subparsers.add_parser(
        "perplexity",
        help="measure how well a model predicts a text",
        description="Perplexity of MODEL on FILE, by llama-perplexity's convention: windows that do "
        "not overlap, the second half of each scored. Figures compare only with the same file and N.",
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("file", metavar="FILE", help="a UTF-8 text file")
    parser.add_argument(
        "--json", action="store_true", help='print {"perplexity": …, "tokens": …, "windows": …}'
    )
    add_settings(parser, (*WINDOWS, *LOADING))
    parser.set_defaults(handler=perplexity_command)


def perplexity_command(args: argparse.Namespace) -> int:
    windows = {"n_ctx": 512, **given(args, WINDOWS)}
    loading = given(args, LOADING)
    text = read_text(Path(args.file))
    terminal = Terminal(sys.stdout, sys.stderr)
    with load(args.model, {**loading, "n_ctx": windows["n_ctx"]}, terminal) as llm:
        from nanollama.perplexity import perplexity

        with progress_bar(windows["n_ctx"]) as on_window:
            result = perplexity(llm, text, **windows, on_window=on_window)
    if args.json:
        facts = {"perplexity": result.perplexity, "tokens": result.tokens, "windows": result.windows}
        terminal.write(json.dumps(facts) + "\n")
    else:
        count = "1 window" if result.windows == 1 else f"{result.windows} windows"
        terminal.write(
            f"perplexity {result.perplexity:.4f} ({result.tokens} tokens scored in {count} of "
            f"{windows['n_ctx']})\n"
        )
    return 0


def read_text(path: Path) -> str:
    """The text of a file. Raises ``UsageError`` when it is not there, not text, or empty."""
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text (at byte {error.start}): convert it with iconv") from None
    if not text.strip():
        raise UsageError(f"{path} is empty: give a file with text")
    return text


@contextmanager
def progress_bar(n_ctx: int) -> Iterator[OnWindow]:
    """A bar on standard error that counts tokens, for the windows that its value is called with.

    It begins with the first of several, which is in no speed.
    """
    bar: ProgressBar | None = None

    def on_window(done: int, total: int, figure: float) -> None:
        nonlocal bar
        if bar is not None:
            bar.update(done * n_ctx)
        elif done < total:
            bar = ProgressBar()
            bar.begin("perplexity", total * n_ctx, done * n_ctx, unit="tok")

    try:
        yield on_window
    finally:
        if bar is not None:
            bar.end()
