"""``quantize``: a model and a type in, a smaller file out, with a progress bar on the way."""

import argparse
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanollama.cli.options import Setting, add_settings, choice, given
from nanollama.cli.terminal import Terminal
from nanollama.errors import UsageError
from nanollama.quant.plan import FILE_TYPES, size_text

if TYPE_CHECKING:
    from nanollama.formats.gguf import GGUFFile

FULL_PRECISION = ("F32", "F16", "BF16", "F64")
_HEADER_ROOM = 64 << 20  # for metadata, of which a vocabulary is most


def _type_name(text: str) -> str:
    return choice(text.upper(), tuple(FILE_TYPES))


TYPE = Setting("type", ("--type",), "TYPE", ", ".join(FILE_TYPES), _type_name)


def add_quantize_parser(subparsers: "argparse._SubParsersAction[Any]") -> None:
    parser = subparsers.add_parser(
        "quantize",
        help="write a model file with smaller weights",
        description="Write the model SRC to the file DST with its matrices in TYPE. As with llama.cpp, the "
        "matrix of output logits keeps at least six bits, and matrices that a type's blocks don't fit get a "
        "larger type.",
    )
    parser.add_argument("source", metavar="SRC", help="a name or a .gguf file")
    parser.add_argument("destination", metavar="DST", help="the .gguf file to write")
    add_settings(parser, (TYPE,))
    parser.add_argument("--force", action="store_true", help="replace DST if it exists")
    parser.set_defaults(handler=quantize_command)


def quantize_command(args: argparse.Namespace) -> int:
    wanted = given(args, (TYPE,)).get("type")
    if wanted is None:
        raise UsageError(f"--type is missing: give one of {', '.join(FILE_TYPES)}")
    destination = checked_destination(Path(args.destination), force=args.force)

    from nanollama.cli.progress import ProgressBar
    from nanollama.store.store import resolve

    terminal = Terminal(sys.stdout, sys.stderr)
    source = resolve(args.source, progress=ProgressBar())
    if destination.exists() and destination.samefile(source):
        raise UsageError(f"SRC and DST are both {destination}: give another DST")

    from nanollama.formats.gguf import GGUFFile
    from nanollama.quant.requantize import planned_bytes, requantize_file

    with GGUFFile(source) as file:
        if loss := loss_notice(file):
            terminal.note(loss)
        total = planned_bytes(file, wanted)
        check_room(destination, total)
        bar = ProgressBar()
        bar.begin(destination.name, total)
        outcome = requantize_file(file, destination, wanted, on_bytes=bar.update)
        bar.end()
    if outcome.misfits:
        terminal.note(misfit_notice(outcome.misfits, wanted))
    before, after = size_text(outcome.before), size_text(outcome.after)
    terminal.write(f"{destination}: {after} of weights in {wanted}, {before} before\n")
    return 0


def checked_destination(path: Path, *, force: bool) -> Path:
    """``path`` if a file can be written there. Raises ``UsageError``."""
    if path.is_dir():
        raise UsageError(f"{path} is a folder: give the path of the file to write")
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent} is not a folder: create it, or write DST elsewhere")
    if path.exists() and not force:
        raise UsageError(f"{path} exists already: give another DST, or --force to replace it")
    return path


def check_room(destination: Path, n_bytes: int) -> None:
    """Raises ``UsageError`` where the disk is too full for ``n_bytes`` of weights."""
    free = shutil.disk_usage(destination.parent).free
    if free < n_bytes + _HEADER_ROOM:
        raise UsageError(
            f"{size_text(n_bytes)} are needed in {destination.parent} and {size_text(free)} are free: "
            "make room, or write DST elsewhere"
        )


def loss_notice(file: "GGUFFile") -> str | None:
    """What to tell about a source that was quantized before, or nothing."""
    names = {t.fmt.name for t in file.tensors.values() if len(t.shape) > 1}
    packed = sorted(names.difference(FULL_PRECISION))
    if not packed:
        return None
    return (
        f"{file.path.name} is quantized already ({', '.join(packed)}): what was lost then stays lost; "
        "a file in F16 or F32 gives better results"
    )


def misfit_notice(misfits: Mapping[str, str], wanted: str) -> str:
    """Which matrices got another type because of their width, those of all layers in one."""
    kinds: dict[str, dict[str, int]] = {}
    for name, fmt in misfits.items():
        kind = [part for part in name.split(".") if not part.isdigit() and part not in ("blk", "weight")]
        counts = kinds.setdefault(fmt, {})
        counts[".".join(kind)] = counts.get(".".join(kind), 0) + 1
    listed = "; ".join(
        f"{fmt} for " + ", ".join(f"{kind} ({n})" if n > 1 else kind for kind, n in counts.items())
        for fmt, counts in kinds.items()
    )
    return f"these have rows that are no whole number of {wanted} blocks, and got {listed}"
