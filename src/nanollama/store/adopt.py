"""Models that lie in the store's folders without an entry in the register: a folder in, records out.

Versions before the register left them so, and people put files there by hand. The folders are
``<root>/[host/]<namespace>/<model>/<tag>``; one with a single whole ``.gguf`` file is a model.
"""

import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path

from nanollama.errors import UsageError
from nanollama.store.catalogue import Entry, find_entry
from nanollama.store.files import regular_file
from nanollama.store.names import ModelName
from nanollama.store.recipe import Recipe
from nanollama.store.registry import Record, RecordFile
from nanollama.store.removal import LOCK

_SPLIT = re.compile(r".*-\d{5}-of-\d{5}\.gguf", re.ASCII | re.IGNORECASE)
"""One part of a model in several files. Alone it is no model."""


def adoptable(root: Path, catalogue: tuple[Entry, ...], taken: Collection[Path]) -> Iterator[Record]:
    """A record for each such folder, unless its file is among those ``taken``. No link is followed."""
    for namespace in _folders(root):
        for model in _folders(namespace):
            for tag in _folders(model):
                yield from _adopted(tag, root, catalogue, taken)
                if "." in namespace.name or namespace.name == "localhost":  # then it is perhaps a host
                    for inner in _folders(tag):
                        yield from _adopted(inner, root, catalogue, taken)


def _adopted(
    folder: Path, root: Path, catalogue: tuple[Entry, ...], taken: Collection[Path]
) -> Iterator[Record]:
    *place, tag = folder.relative_to(root).parts
    try:
        name = ModelName.parse(f"{'/'.join(place)}:{tag}")
    except UsageError:
        return
    if folder_of(root, name) != folder:
        return
    entry = find_entry(name, catalogue)
    if entry is not None and (entry.file is None or entry.name != name):
        entry = None
    pinned = entry.file if entry else None
    files = [folder / pinned] if pinned else [path for path in _ggufs(folder) if path not in taken]
    if len(files) != 1 or files[0] in taken or _SPLIT.fullmatch(files[0].name):
        return
    if entry is None and (folder / LOCK).exists():
        return  # a pull ended before its record was written; the next one checks the file and writes it
    status = regular_file(files[0])
    if status is None or (entry and status.st_size != entry.size):
        return
    digest = entry.digest if entry else None
    recipe = Recipe(parameters=dict(entry.sampling), licences=(entry.licence,)) if entry else Recipe()
    yield Record(
        name=name,
        format="gguf",
        path=files[0],
        size=status.st_size,
        digest=digest,
        modified=round(status.st_mtime, 6),
        owned=entry is not None,
        source="catalogue" if entry else "a file in the store's folder",
        recipe=recipe,
        files=(RecordFile(files[0].name, status.st_size, digest),),
    )


def folder_of(root: Path, name: ModelName) -> Path:
    """Where the files of ``name`` lie. Its parts are safe path components by construction."""
    place = root / _host_folder(name.host) if name.host else root
    return place / name.namespace / name.model / name.tag


def _host_folder(host: str) -> str:
    return host.replace(":", "+")  # a port; no name contains a plus sign


def _folders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as found:
            return [Path(each.path) for each in found if each.is_dir(follow_symlinks=False)]
    except OSError:
        return []


def _ggufs(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as found:
            return [Path(each.path) for each in found if each.name.endswith(".gguf")]
    except OSError:
        return []
