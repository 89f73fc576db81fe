"""``quantize``: a model and a type in, a smaller file out, with a progress bar on the way."""

import argparse
import sys
from pathlib import Path
from typing import Any

from nanollama.cli.options import Setting, add_settings, choice, given
from nanollama.cli.terminal import Terminal
from nanollama.errors import UsageError
from nanollama.quant.notices import check_room, loss_notice, misfit_notice
from nanollama.quant.plan import ALIASES, FILE_TYPES
from nanollama.units import size_text


def _type_name(text: str) -> str:
    return choice(ALIASES.get(text.upper(), text.upper()), tuple(FILE_TYPES))


TYPE = Setting("type", ("--type",), "TYPE", ", ".join(FILE_TYPES), _type_name)


def add_quantize_parser(subparsers: "argparse._SubParsersAction[Any]") -> None:
    parser = subparsers.add_parser(
        "quantize",
        help="write a model file with smaller weights",
        description="Write the model SRC to the GGUF file DST with its matrices in TYPE. As with llama.cpp, "
        "the matrix of output logits keeps at least six bits, matrices that a type's blocks don't fit get a "
        "larger type, and so do in Q4_K_S to Q5_K_M those that matter most.",
    )
    parser.add_argument("source", metavar="SRC", help="a name, a .gguf file or a folder of safetensors")
    parser.add_argument("destination", metavar="DST", help="the .gguf file to write")
    add_settings(parser, (TYPE,))
    parser.add_argument("--force", action="store_true", help="replace DST if it exists")
    parser.set_defaults(handler=quantize_command)


def quantize_command(args: argparse.Namespace) -> int:
    wanted = given(args, (TYPE,)).get("type")
    if wanted is None:
        raise UsageError(f"--type is missing: give one of {', '.join(FILE_TYPES)}")
    destination = Path(args.destination)
    refuse_itself(Path(args.source), destination)  # first: another refusal would suggest --force
    check_destination(destination, force=args.force)

    from nanollama.cli.progress import ProgressBar
    from nanollama.store.store import locate

    terminal = Terminal(sys.stdout, sys.stderr)
    path = locate(args.source, progress=ProgressBar()).path
    refuse_itself(path, destination)

    from nanollama.model.gguf_export import opened_source
    from nanollama.quant.requantize import planned_bytes, requantize

    with opened_source(path) as source:
        if loss := loss_notice(source):
            terminal.note(loss)
        total = planned_bytes(source, wanted)
        check_room(destination, total)
        bar = ProgressBar()
        bar.begin(destination.name, total)
        outcome = requantize(source, destination, wanted, on_bytes=bar.update)
        bar.end()
    if outcome.misfits:
        terminal.note(misfit_notice(outcome.misfits, wanted))
    before, after = size_text(outcome.before), size_text(outcome.after)
    terminal.write(f"{destination}: {after} of weights in {wanted}, {before} before\n")
    return 0


def refuse_itself(source: Path, destination: Path) -> None:
    """Raises ``UsageError`` where both are one file, by whatever path."""
    if destination.exists() and source.exists() and destination.samefile(source):
        raise UsageError(f"SRC and DST are both {destination}: give another DST")


def check_destination(path: Path, *, force: bool) -> None:
    """Raises ``UsageError`` unless a file can be written to ``path``."""
    if path.is_dir():
        raise UsageError(f"{path} is a folder: give the path of the file to write")
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent} is not a folder: create it, or write DST elsewhere")
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is there and no regular file: give the path of the file to write")
    if path.exists() and not force:
        raise UsageError(f"{path} exists already: give another DST, or --force to replace it")
