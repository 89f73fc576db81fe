"""What the parsers of all commands share: a name and a sentence in, a parser with its handler out."""

import argparse
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # The type argparse gives to what add_subparsers returns; it has no public name.
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

MODEL_HELP = "a name, or the path of a .gguf file or a folder"


def add_command(
    subparsers: "Subparsers",
    name: str,
    handler: Callable[[argparse.Namespace], int],
    help: str,
    *,
    aliases: tuple[str, ...] = (),
    examples: str | None = None,
) -> argparse.ArgumentParser:
    """Adds the command ``name``, which ``handler`` does; ``examples`` are shown below its options."""
    parser = subparsers.add_parser(
        name,
        help=help,
        aliases=aliases,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter if examples else argparse.HelpFormatter,
    )
    parser.set_defaults(handler=handler)
    return parser


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A clause that names the one of ``known`` that ``word`` looks like, or nothing."""
    from difflib import get_close_matches

    close = get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""
