"""The commands ``list`` and ``pull``: parsed flags in, a table on stdout and an exit code out."""

import argparse
import json
import time
from typing import TYPE_CHECKING, Any

from nanollama.store.names import ModelName
from nanollama.store.store import Store, StoredModel

if TYPE_CHECKING:
    # The type argparse gives to what add_subparsers returns; it has no public name.
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


def add_list_parser(subparsers: "Subparsers") -> None:
    """Adds ``nanollama list`` to the command line."""
    parser = subparsers.add_parser("list", help="show the models on this machine", aliases=["ls"])
    parser.add_argument("--json", action="store_true", help="print one JSON array instead of a table")
    parser.set_defaults(handler=list_command)


def add_pull_parser(subparsers: "Subparsers") -> None:
    """Adds ``nanollama pull`` to the command line."""
    parser = subparsers.add_parser("pull", help="fetch a model, or finish fetching it")
    parser.add_argument("model", metavar="MODEL", help="a name of the catalogue, for instance smollm2")
    parser.set_defaults(handler=pull_command)


def list_command(args: argparse.Namespace) -> int:
    """Prints the stored models, newest first."""
    models = Store().list()
    if args.json:
        print(json.dumps([_as_json(model) for model in models], indent=2))
    else:
        print(_table(models, time.time()))
    return 0


def pull_command(args: argparse.Namespace) -> int:
    """Fetches ``args.model`` with a progress bar on stderr; a complete file is verified instead."""
    from nanollama.cli.progress import ProgressBar

    model = Store().pull(ModelName.parse(args.model), ProgressBar())
    print(f"{model.name} is complete and verified: {model.path}")
    return 0


def _table(models: list[StoredModel], now: float) -> str:
    rows = [("NAME", "ID", "SIZE", "MODIFIED")]
    for model in models:
        identity = model.digest.short if model.digest else "-"
        rows.append((str(model.name), identity, size_text(model.size), age_text(now - model.modified)))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = ("    ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[3]]) for row in rows)
    return "\n".join(lines)


def _as_json(model: StoredModel) -> dict[str, Any]:
    return {
        "name": str(model.name),
        "digest": model.digest.text if model.digest else None,
        "size": model.size,
        "modified": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(model.modified)),
        "path": str(model.path),
    }


def size_text(size: int) -> str:
    """``size`` bytes in powers of 1000, as disks are sold: ``98 MB``, ``1.3 GB``."""
    value = float(size)
    for unit in ("B", "kB", "MB"):
        if value < 999.5:
            return f"{value:.0f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"


def age_text(seconds: float) -> str:
    """``3 hours ago``, in the largest unit of which at least one has passed."""
    units = (("year", 31_536_000), ("month", 2_592_000), ("week", 604_800), ("day", 86_400))
    for unit, length in (*units, ("hour", 3600), ("minute", 60), ("second", 1)):
        if (count := int(seconds // length)) >= 1:
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"
