"""The command ``search``: words in, the models that match them in the catalogue and on the hub out."""

import argparse
import sys
from typing import TYPE_CHECKING

from nanollama.cli.parsers import add_command
from nanollama.cli.terminal import table
from nanollama.errors import DownloadError

if TYPE_CHECKING:
    from nanollama.cli.parsers import Subparsers

_HUB_RESULTS = 20


def add_search_parser(subparsers: "Subparsers") -> None:
    """Adds ``nanollama search`` to the command line."""
    help = "find models to pull, in the catalogue and on the hub"
    parser = add_command(subparsers, "search", search_command, help)
    parser.add_argument("text", metavar="TEXT", nargs="*", help="words; without one, the whole catalogue")


def search_command(args: argparse.Namespace) -> int:
    """Prints the catalogue's entries first; then, for a text and online, repositories of the hub."""
    from nanollama.cli.models import open_store
    from nanollama.store.catalogue import CATALOGUE
    from nanollama.units import size_text

    words = " ".join(args.text).lower().split()
    here = {str(record.name) for record in open_store().list()}
    rows: list[tuple[str, ...]] = [("NAME", "SIZE", "LICENCE", "")]
    for entry in CATALOGUE:
        place = entry.repo.repo if entry.repo else ""
        if all(word in f"{entry.name} {place}".lower() for word in words):
            size = size_text(entry.size) if entry.size is not None else "-"
            note = "on this machine" if str(entry.name) in here else ""
            if entry.is_for_embeddings:
                note = "computes embeddings: can't be run"
            rows.append((str(entry.name), size, entry.licence, note))
    found = len(rows) - 1
    if found:
        print(table(rows))
    if words:
        found += _search_hub(" ".join(words), spaced=found > 0)
    if not found:
        print("nanollama: nothing found; 'nanollama search' lists the whole catalogue", file=sys.stderr)
    return 0 if found else 1


def _search_hub(text: str, *, spaced: bool) -> int:
    """Prints what the hub finds, most downloaded first, and returns how many."""
    from nanollama.store.fetch import Fetcher
    from nanollama.store.hub import hub_search

    try:
        models = hub_search(Fetcher(), text, _HUB_RESULTS)
    except DownloadError as error:
        print(f"nanollama: only the catalogue was searched: {error}", file=sys.stderr)
        return 0
    if models:
        rows: list[tuple[str, ...]] = [("NAME", "DOWNLOADS", "LIKES", "MODIFIED")]
        rows += [(each.name, f"{each.downloads:,}", f"{each.likes:,}", each.modified[:10]) for each in models]
        print(("\n" if spaced else "") + table(rows))
    return len(models)
