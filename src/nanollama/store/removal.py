"""Deleting files of the store: a record nobody has any more in, what was deleted and what was kept out.

Only files that a record names, downloads that did not finish, locks and folders that are empty then are ever
deleted.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from nanollama.errors import NanollamaError, UsageError
from nanollama.store.files import locked, regular_file
from nanollama.store.names import ModelName
from nanollama.store.registry import Record

LOCK = ".lock"
"""In a model's folder, held by whoever fetches the model."""

UNFINISHED = (".part", ".part.map")
"""What the name of a file on its way ends with; wheels on their way lie in a folder ``<file>.wheels``."""


@dataclass(frozen=True, slots=True)
class Removed:
    """What became of the files of a removed name; ``kept`` says why."""

    name: ModelName
    deleted: tuple[Path, ...] = ()
    kept: tuple[tuple[Path, str], ...] = ()


def discard(record: Record, others: Iterable[Record], root: Path, *, delete_file: bool = False) -> Removed:
    """Deletes the files of ``record`` but for those that ``others`` use, or that are not ours.

    Raises ``NanollamaError`` for a file that can't be deleted.
    """
    users = {os.path.realpath(path): other.name for other in others for path in other.paths}
    deleted, kept = [], []
    for path in record.paths:
        if user := users.get(os.path.realpath(path)):
            kept.append((path, f"{user} uses it"))
        elif not (record.owned or delete_file):
            kept.append((path, "nanollama did not fetch it; --delete-file deletes such a file"))
        elif os.path.islink(path) or regular_file(path):
            if os.path.islink(path):
                kept.append((path.resolve(), "only the link to it was deleted"))
            _delete(path)
            deleted.append(path)
    if record.path.is_relative_to(root):
        tidy(record.folder, root)
    return Removed(record.name, tuple(deleted), tuple(kept))


def remove_unfinished(folder: Path, root: Path) -> tuple[Path, ...]:
    """Deletes what downloads that did not finish left in ``folder``.

    Raises ``UsageError`` if one is running there.
    """
    import shutil

    found = [path for path in folder.glob("*") if path.name.endswith((*UNFINISHED, ".wheels"))]
    if not found:
        return ()
    try:
        with locked(folder / LOCK, wait=False):
            for path in found:
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    _delete(path)
    except BlockingIOError:
        raise UsageError(
            f"another process is fetching a model into {folder}: wait until it has finished"
        ) from None
    tidy(folder, root)
    return tuple(found)


def tidy(folder: Path, root: Path) -> None:
    """Removes ``folder`` and those around it as far as nothing but a lock is in them."""
    while folder != root and folder.is_relative_to(root):
        try:
            if {each.name for each in folder.iterdir()} <= {LOCK}:
                (folder / LOCK).unlink(missing_ok=True)
            folder.rmdir()
        except OSError:  # something else is in it
            return
        folder = folder.parent


def _delete(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise NanollamaError(
            f"{path} can't be deleted ({error.strerror or error}): check the permissions of its folder"
        ) from error
