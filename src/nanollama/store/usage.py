"""What takes up the disk: the register and the store's folder in, bytes by name and what belongs to none out.

A file that several names share is counted once, for the oldest of them.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from nanollama.store.files import regular_file
from nanollama.store.registry import FILE, Record
from nanollama.store.removal import LOCK, UNFINISHED


@dataclass(frozen=True, slots=True)
class Use:
    """The bytes of one name: of files counted here, and of those counted under ``shared_with``."""

    name: str
    size: int
    shared_size: int
    shared_with: str | None
    inside: bool


@dataclass(frozen=True, slots=True)
class Usage:
    """``unfinished`` are downloads on their way, ``others`` what no name uses; both are (path, bytes)."""

    models: tuple[Use, ...]
    unfinished: tuple[tuple[Path, int], ...]
    others: tuple[tuple[Path, int], ...]

    @property
    def inside(self) -> int:
        """Bytes in the store's folder."""
        models = sum(use.size for use in self.models if use.inside)
        return models + sum(size for _, size in (*self.unfinished, *self.others))

    @property
    def elsewhere(self) -> int:
        """Bytes of models that lie somewhere else."""
        return sum(use.size for use in self.models if not use.inside)


def usage_of(records: list[Record], root: Path) -> Usage:
    """What ``records`` and the folder ``root`` take up now; the largest model comes first."""
    counted: dict[str, str] = {}
    uses = []
    for record in sorted(records, key=lambda record: (record.modified, str(record.name))):
        size = shared = 0
        shared_with = None
        for path in record.paths:
            if not (status := regular_file(path, follow=not record.owned)):
                continue
            owner = counted.setdefault(os.path.realpath(path), str(record.name))
            if owner == str(record.name):
                size += status.st_size
            else:
                shared, shared_with = shared + status.st_size, owner
        uses.append(Use(str(record.name), size, shared, shared_with, record.path.is_relative_to(root)))
    uses.sort(key=lambda use: (-use.size, use.name))
    unfinished: list[tuple[Path, int]] = []
    others: list[tuple[Path, int]] = []
    for path, size in _files_below(root):
        if os.path.realpath(path) in counted:
            continue
        on_its_way = path.name.endswith(UNFINISHED) or any(part.endswith(".wheels") for part in path.parts)
        (unfinished if on_its_way else others).append((path, size))
    return Usage(tuple(uses), tuple(unfinished), tuple(others))


def _files_below(root: Path) -> list[tuple[Path, int]]:
    """All files in the store but its own: the register and its copies, and locks."""
    found = []
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            own = name == LOCK or (folder == str(root) and name.startswith(FILE))
            if not own and (status := regular_file(path)):
                found.append((path, status.st_size))
    return sorted(found)
