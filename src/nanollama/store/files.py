"""What the store does with single files: paths in; facts about them, locks and safe writes out.

Whatever is opened is a regular file when its bytes are read. A file written here has its name only when all
of it is on disk.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nanollama.store.names import Digest
from nanollama.store.transfer import Progress

CHUNK = 1 << 20


def expanded(text: str) -> Path:
    """``text`` as a path, a leading ``~`` read as the home folder where there is one."""
    with suppress(ValueError):  # a NUL or a lone surrogate: no file has such a name
        return Path(os.path.expanduser(text))
    return Path(text)


def unwound(path: Path) -> Path:
    """``path`` as an absolute one without ``..``, which means the same to whoever reads it later.

    Links stay what they are, but for those before a ``..``.
    """
    path = path.absolute()
    if ".." in path.parts:
        with suppress(ValueError):  # a NUL: no file has such a name
            if path.name == "..":
                return Path(os.path.realpath(path))
            return Path(os.path.realpath(path.parent), path.name)
    return path


def regular_file(path: Path, *, follow: bool = False) -> os.stat_result | None:
    """The status of ``path`` if it is a regular file, and no link unless links are followed."""
    try:
        status = os.stat(path) if follow else os.lstat(path)
    except (OSError, ValueError):  # ValueError: a NUL in the path
        return None
    return status if stat.S_ISREG(status.st_mode) else None


def read_small(path: Path, limit: int, *, follow: bool = False) -> bytes | None:
    """The content of a regular file of at most ``limit`` bytes, or ``None`` if there is nothing.

    Raises ``OSError`` for what can't be read and for what is no regular file (nothing blocks on a pipe or a
    device), ``ValueError`` for a larger file.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | (0 if follow else getattr(os, "O_NOFOLLOW", 0))
    try:
        descriptor = os.open(path, flags)
    except (FileNotFoundError, NotADirectoryError):
        return None
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"more than {limit} bytes")
    return content


def sha256_of(path: Path, progress: Progress | None = None, what: str = "") -> Digest:
    """The digest of a file; ``progress`` is told how far the reading is."""
    import hashlib

    with path.open("rb") as file:
        if progress is None:
            return Digest(f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}")
        total, done = hashlib.sha256(), 0
        progress.begin(what, os.fstat(file.fileno()).st_size)
        try:
            while chunk := file.read(CHUNK):
                total.update(chunk)
                done += len(chunk)
                progress.update(done)
        finally:
            progress.end()
    return Digest(f"sha256:{total.hexdigest()}")


def sync_folder(folder: Path) -> None:
    """Makes a rename in ``folder`` survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, content: bytes) -> None:
    """Replaces ``path`` by a file with ``content``: at any moment the old or the new one is there, whole."""
    unfinished = path.with_name(f"{path.name}.new")
    try:
        unfinished.unlink(missing_ok=True)  # never written through, if it is a link
        with unfinished.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


@contextmanager
def locked(
    path: Path, *, wait: bool = True, progress: Progress | None = None, why: str = ""
) -> Iterator[None]:
    """Holds the lock file ``path``, made with its folders; the system gives it back when the process ends.

    Raises ``BlockingIOError`` if another process has it and ``wait`` is false; otherwise ``progress`` is told
    ``why`` this takes time.
    """
    import fcntl

    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not wait:
                    raise
                if progress is not None:
                    progress.notice(why)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            here = regular_file(path)
            if here is None or not os.path.samestat(here, os.fstat(descriptor)):
                continue  # whoever had it removed the file: the lock is another one now
            yield
            return
        finally:
            os.close(descriptor)
