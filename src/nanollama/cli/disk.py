"""The commands ``du`` and ``verify``: what models take up, and whether their files are still right."""

import argparse
import sys
from typing import TYPE_CHECKING

from nanollama.cli.parsers import add_command
from nanollama.errors import NanollamaError
from nanollama.store.names import ModelName

if TYPE_CHECKING:
    from nanollama.cli.parsers import Subparsers
    from nanollama.store.verify import Known, Verification


def add_du_parser(subparsers: "Subparsers") -> None:
    """Adds ``nanollama du`` to the command line."""
    add_command(subparsers, "du", du_command, "show what the models take up on the disk")


def add_verify_parser(subparsers: "Subparsers") -> None:
    """Adds ``nanollama verify`` to the command line."""
    help = "compare the files of models with their digests"
    parser = add_command(subparsers, "verify", verify_command, help)
    parser.add_argument("models", metavar="MODEL", nargs="*", help="names; without one, all models")
    parser.add_argument("--repair", action="store_true", help="fetch again what is missing or damaged")


def du_command(args: argparse.Namespace) -> int:
    """Prints the bytes of each model, of what belongs to none, and the totals."""
    from nanollama.cli.models import open_store
    from nanollama.cli.terminal import table
    from nanollama.units import size_text

    store = open_store()
    usage = store.usage()
    rows: list[tuple[str, ...]] = [("SIZE", "WHAT", "")]
    for use in usage.models:
        notes = [f"{size_text(use.shared_size)} shared with {use.shared_with}"] if use.shared_with else []
        notes += [] if use.inside else ["outside the store's folder"]
        rows.append((size_text(use.size), use.name, ", ".join(notes)))
    for found, note in ((usage.unfinished, "an unfinished download"), (usage.others, "used by no model")):
        rows += [(size_text(size), str(path.relative_to(store.root)), note) for path, size in found]
    rows.append((size_text(usage.inside), "in total", f"in {store.root}"))
    if usage.elsewhere:
        rows.append((size_text(usage.elsewhere), "in total", "elsewhere"))
    print(table(rows))
    return 0


def verify_command(args: argparse.Namespace) -> int:
    """Checks models one by one; 0 if all are right in the end."""
    from nanollama.cli.models import open_store
    from nanollama.cli.progress import ProgressBar

    store, bar, code = open_store(), ProgressBar(), 0
    known: Known = {}
    state = store.state()
    for text in args.models or sorted([*map(str, state.records), *state.unreadable]):
        try:
            name = ModelName.parse(text)
            found = store.verify(name, repair=args.repair, progress=bar, known=known)
        except NanollamaError as error:
            print(f"nanollama: error: {error}", file=sys.stderr)
            code = max(code, error.exit_code)
            continue
        print(_sentence(found))
        for problem in found.problems:
            print(f"  {problem}")
        code = max(code, 1 if found.problems else 0)
    return code


def _sentence(found: "Verification") -> str:
    if found.problems:
        return f"{found.name} is damaged"
    files = "1 file" if found.files == 1 else f"{found.files} files"
    notes = ", repaired" if found.repaired else ""
    if found.unchecked:
        notes += f", {found.unchecked} without a known digest"
    return f"{found.name} is right ({files}{notes})"
