"""The commands ``list``, ``rm``, ``cp`` and ``path``: parsed flags in, lines on stdout, an exit code out."""

import argparse
import json
import sys
import time
from typing import TYPE_CHECKING, Any

from nanollama.cli.parsers import add_command
from nanollama.cli.terminal import table
from nanollama.errors import NanollamaError
from nanollama.store.names import ModelName
from nanollama.store.registry import Record
from nanollama.store.store import Store
from nanollama.units import age_text, size_text

if TYPE_CHECKING:
    from nanollama.cli.parsers import Subparsers


def add_list_parser(subparsers: "Subparsers") -> None:
    """Adds ``nanollama list`` to the command line."""
    help = "show the models on this machine"
    parser = add_command(subparsers, "list", list_command, help, aliases=("ls",))
    parser.add_argument("--json", action="store_true", help="print one JSON array instead of a table")
    parser.add_argument("--names", action="store_true", help=argparse.SUPPRESS)  # for shell completion


def add_rm_parser(subparsers: "Subparsers") -> None:
    """Adds ``nanollama rm`` to the command line."""
    help = "remove models, and the files that were fetched for them"
    parser = add_command(subparsers, "rm", rm_command, help)
    parser.add_argument("models", metavar="MODEL", nargs="+", help="the name of a model")
    parser.add_argument(
        "--delete-file", action="store_true", help="delete also a file that nanollama did not fetch"
    )


def add_cp_parser(subparsers: "Subparsers") -> None:
    """Adds ``nanollama cp`` to the command line."""
    help = "give a model a second name; its files are shared"
    parser = add_command(subparsers, "cp", cp_command, help)
    parser.add_argument("source", metavar="SRC", help="the name of a model")
    parser.add_argument("target", metavar="DST", help="the new name")
    parser.add_argument("--force", action="store_true", help="take the name from a model that has it")


def add_path_parser(subparsers: "Subparsers") -> None:
    """Adds ``nanollama path`` to the command line."""
    help = "print where a model's file or folder lies"
    parser = add_command(subparsers, "path", path_command, help)
    parser.add_argument("model", metavar="MODEL", help="the name of a model on this machine")


def open_store() -> Store:
    """The store of this user; what it has to say goes to standard error."""
    return Store(notice=lambda text: print(f"nanollama: {text}", file=sys.stderr))


def list_command(args: argparse.Namespace) -> int:
    """Prints the models that are there, newest first."""
    store = open_store()
    records = store.list()
    if args.names:
        for record in records:
            print(record.name)
    elif args.json:
        print(json.dumps([_as_json(record) for record in records], indent=2))
    else:
        now = time.time()
        rows: list[tuple[str, ...]] = [("NAME", "ID", "SIZE", "MODIFIED")]
        for each in records:
            age = age_text(now - each.modified)
            rows.append((str(each.name), each.id[:12], size_text(each.size), age))
        print(table(rows))
    if not args.names and (broken := store.broken()):
        print(f"nanollama: left out: {', '.join(broken)}; 'nanollama verify' says why", file=sys.stderr)
    return 0


def rm_command(args: argparse.Namespace) -> int:
    """Removes models one by one; a name that fails doesn't keep the others."""
    store, code = open_store(), 0
    for text in args.models:
        try:
            removed = store.remove(ModelName.parse(text), delete_file=args.delete_file)
        except NanollamaError as error:
            print(f"nanollama: error: {error}", file=sys.stderr)
            code = max(code, error.exit_code)
            continue
        print(f"removed {removed.name}")
        for path in removed.deleted:
            print(f"  deleted {path}")
        for path, reason in removed.kept:
            print(f"  kept {path}: {reason}")
    return code


def cp_command(args: argparse.Namespace) -> int:
    """Registers the model ``args.source`` under a second name."""
    source, target = ModelName.parse(args.source), ModelName.parse(args.target)
    store = open_store()
    base = store.present(source).name
    record = store.copy(base, target, replacing=args.force)
    print(f"{record.name} is a copy of {base}; the files are shared")
    return 0


def path_command(args: argparse.Namespace) -> int:
    """Prints one path, and nothing else."""
    print(open_store().present(ModelName.parse(args.model)).path)
    return 0


def _as_json(record: Record) -> dict[str, Any]:
    return {
        "name": str(record.name),
        "id": record.id,
        "digest": record.digest.text if record.digest else None,
        "size": record.size,
        "modified": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.modified)),
        "format": record.format,
        "path": str(record.path),
        "source": record.source,
        "parent": record.parent,
    }
