"""Files that clients upload, by digest: bytes in, a file that has that digest out, or nothing at all.

They wait in ``<store>/uploads`` until a model is created from them, and then lie in the model's own folder.
What belongs to a model already counts as uploaded.
"""

import hashlib
import os
import secrets
import shutil
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import IO

from nanollama.errors import ModelNotFoundError, NanollamaError, UsageError
from nanollama.store.files import regular_file, sync_folder
from nanollama.store.imports import describe
from nanollama.store.names import Digest, ModelName
from nanollama.store.recipe import Recipe
from nanollama.store.registry import UPLOADED, Record, RecordFile
from nanollama.store.removal import tidy
from nanollama.store.store import Store

_FOLDER = "uploads"
_SLACK_BYTES = 256 << 20
"""Free space that an upload leaves on the disk."""

_CHECK_BYTES = 32 << 20
"""Bytes after which the free space is looked at again."""

_STALE_S = 86_400.0
"""Age from which an unfinished upload is what a killed process left."""


class StorageFullError(NanollamaError):
    """The disk has no room for an upload."""

    http_status = 507


class Blobs:
    """The uploaded files of one store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._folder = store.root / _FOLDER

    def find(self, digest: Digest) -> Path | None:
        """The file that has ``digest``, if there is one."""
        path = self._path(digest)
        if regular_file(path) is not None:
            return path
        for record in self._store.list():
            for place, file in zip(record.paths, record.files, strict=True):
                if file.digest == digest:
                    return place
        return None

    def begin(self, digest: Digest) -> "Upload":
        """An upload of the file with ``digest``."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for left in self._folder.glob("*.part"):
            with suppress(OSError):
                if time.time() - left.lstat().st_mtime > _STALE_S:
                    left.unlink()
        return Upload(self._path(digest), digest)

    def create(self, name: ModelName, file: str, digest: Digest, recipe: Recipe) -> Record:
        """Registers ``name`` as the uploaded ``.gguf`` file with ``digest``, called ``file`` from then on.

        Raises ``ModelNotFoundError`` if it was not uploaded, and the errors of a file that is no model.
        """
        found = self.find(digest)
        if found is None:
            raise ModelNotFoundError(f"no file with the digest {digest.text} was uploaded: send it first")
        if found != self._path(digest):  # a model has it already, and both share it
            return self._store.add(self._record(name, found, recipe, digest, owned=self._is_ours(found)))
        target = self._place(name, file, digest)
        os.replace(found, target)
        try:
            record = self._record(name, target, recipe, digest, owned=True)
        except BaseException:
            os.replace(target, found)
            tidy(target.parent, self._store.root)
            raise
        sync_folder(target.parent)
        return self._store.add(record)

    def _record(self, name: ModelName, path: Path, recipe: Recipe, digest: Digest, *, owned: bool) -> Record:
        record = describe(path, name)
        files = (RecordFile(path.name, record.size, digest),)
        return replace(
            record,
            recipe=recipe,
            digest=digest,
            modified=round(time.time(), 6),
            owned=owned,
            source=UPLOADED,
            files=files,
        )

    def _place(self, name: ModelName, file: str, digest: Digest) -> Path:
        """A free path in the folder of ``name``, called after ``file`` if that can be the name of a file."""
        stem = file.removesuffix(".gguf").lower()
        try:
            stem = ModelName.parse(stem).model if "/" not in stem and ":" not in stem else ""
        except UsageError:
            stem = ""
        folder = self._store.folder(name)
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / f"{stem or 'model'}.gguf"
        return target if not os.path.lexists(target) else folder / f"{stem or 'model'}-{digest.short}.gguf"

    def _is_ours(self, path: Path) -> bool:
        return any(record.owned and path in record.paths for record in self._store.list())

    def _path(self, digest: Digest) -> Path:
        return self._folder / f"sha256-{digest.hex}"


class Upload:
    """One file on its way in. Write all of it and call ``finish``; ``drop`` forgets it, at any time."""

    def __init__(self, final: Path, digest: Digest) -> None:
        self._final, self._digest = final, digest
        self._part = final.with_name(f"{final.name}.{secrets.token_hex(8)}.part")
        self._sum = hashlib.sha256()
        self._unchecked = _CHECK_BYTES
        self._file: IO[bytes] | None = self._part.open("xb")

    def write(self, data: bytes) -> None:
        """Take in the next bytes. Raises ``StorageFullError`` before the disk is full."""
        assert self._file is not None, "the upload is over"
        self._unchecked += len(data)
        if self._unchecked >= _CHECK_BYTES:
            self._unchecked = 0
            if shutil.disk_usage(self._part.parent).free < _SLACK_BYTES + _CHECK_BYTES:
                raise StorageFullError(
                    "the disk has no room for this upload: free some space and send it again"
                )
        self._file.write(data)
        self._sum.update(data)

    def finish(self) -> None:
        """Give the file its name. Raises ``UsageError`` if it is not the one that was announced."""
        assert self._file is not None, "the upload is over"
        got = f"sha256:{self._sum.hexdigest()}"
        if got != self._digest.text:
            self.drop()
            raise UsageError(f'digest mismatch, expected "{self._digest.text}", got "{got}"')
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._file = None
        os.replace(self._part, self._final)
        sync_folder(self._final.parent)

    def drop(self) -> None:
        """Forget what came; after ``finish`` it does nothing."""
        if self._file is not None:
            self._file.close()
            self._file = None
            self._part.unlink(missing_ok=True)
