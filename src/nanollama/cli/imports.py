"""The command ``import``: models that lie on this machine in, names for them out; nothing is copied."""

import argparse
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from nanollama.cli.parsers import add_command
from nanollama.errors import NanollamaError, UsageError
from nanollama.store.files import expanded
from nanollama.store.names import ModelName

if TYPE_CHECKING:
    from nanollama.cli.parsers import Subparsers
    from nanollama.store.imports import Imported, Skipped
    from nanollama.store.store import Store

EXAMPLES = """\
examples:
  nanollama import ~/Downloads/mine.Q4_K_M.gguf --name mine
  nanollama import ./checkpoint-folder
  nanollama import ollama                 all models that Ollama has pulled (OLLAMA_MODELS names its folder)
  nanollama import hf                     all models in the Hugging Face cache (HF_HUB_CACHE)
"""


def add_import_parser(subparsers: "Subparsers") -> None:
    """Adds ``nanollama import`` to the command line."""
    help = "register models that are on this machine already, without a copy"
    parser = add_command(subparsers, "import", import_command, help, examples=EXAMPLES)
    parser.add_argument("what", metavar="PATH", help="a .gguf file, a checkpoint folder, ollama or hf")
    parser.add_argument("--name", help="the name to give it (one like that of the file)")
    parser.add_argument(
        "--from", metavar="DIR", dest="folder", help="where Ollama or the cache keeps its models"
    )


def import_command(args: argparse.Namespace) -> int:
    """Registers one path, or all models of another program. 1 if there was none that could be."""
    from nanollama.cli.models import open_store
    from nanollama.cli.progress import ProgressBar

    store = open_store()
    if args.what in ("ollama", "hf"):
        if args.name is not None:
            raise UsageError(f"--name is for one file or folder; the models of {args.what} keep their names")
        return _import_all(store, _found(args.what, args.folder))
    if args.folder is not None:
        raise UsageError("--from is for 'import ollama' and 'import hf': give the path itself instead")
    name = None if args.name is None else ModelName.parse(args.name)
    record = store.import_path(args.what, name, ProgressBar())
    print(f"{record.name} is registered: {record.path}")
    return 0


def _found(what: str, folder: str | None) -> "Iterator[Imported | Skipped]":
    if what == "ollama":
        from nanollama.store import ollama

        return ollama.ollama_models(expanded(folder) if folder else ollama.default_folder())
    from nanollama.store import hub_cache

    return hub_cache.cached_models(expanded(folder) if folder else hub_cache.default_folder())


def _import_all(store: "Store", found: "Iterator[Imported | Skipped]") -> int:
    from nanollama.store.imports import Skipped

    registered = 0
    for each in found:
        if isinstance(each, Skipped):
            print(f"skipped {each.name}: {each.reason}", file=sys.stderr)
            continue
        record = each.record
        there = store.state().records.get(record.name)
        if there is not None and there.path != record.path:
            print(f"skipped {record.name}: there is a model of that name at {there.path}", file=sys.stderr)
            continue
        try:
            store.add(record)
        except NanollamaError as error:
            print(f"skipped {record.name}: {error}", file=sys.stderr)
            continue
        registered += 1
        print(f"{record.name} is registered: {record.path}")
        for note in each.notes:
            print(f"  {note}")
    if not registered:
        print("nanollama: no model was registered", file=sys.stderr)
    return 0 if registered else 1
