"""The command ``search``: words in, the models that match them in the catalogue and on the hub out."""

import argparse
import sys
from typing import TYPE_CHECKING

from nanollama.errors import DownloadError

if TYPE_CHECKING:
    # The type argparse gives to what add_subparsers returns; it has no public name.
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

_HUB_RESULTS = 20


def add_search_parser(subparsers: "Subparsers") -> None:
    """Adds ``nanollama search`` to the command line."""
    parser = subparsers.add_parser("search", help="find models to pull, in the catalogue and on the hub")
    parser.add_argument("text", metavar="TEXT", nargs="*", help="words; without one, the whole catalogue")
    parser.set_defaults(handler=search_command)


def search_command(args: argparse.Namespace) -> int:
    """Prints the catalogue's entries first; then, for a text and online, repositories of the hub."""
    from nanollama.cli.models import open_store, size_text, table
    from nanollama.store.catalogue import CATALOGUE

    words = " ".join(args.text).lower().split()
    here = {str(record.name) for record in open_store().list()}
    rows: list[tuple[str, ...]] = [("NAME", "SIZE", "LICENCE", "")]
    for entry in CATALOGUE:
        place = entry.repo.repo if entry.repo else ""
        if all(word in f"{entry.name} {place}".lower() for word in words):
            size = size_text(entry.size) if entry.size is not None else "-"
            rows.append(
                (str(entry.name), size, entry.licence, "on this machine" if str(entry.name) in here else "")
            )
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
    from nanollama.cli.models import table
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
