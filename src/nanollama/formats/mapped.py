"""A model file as a read-only memory map: a path in, views of bytes that are there out.

Special files are refused unopened. A view is handed out only while the file keeps the length it had when it
was opened: touching bytes that something cut off would end the process.
"""

import mmap
import os
import stat
import sys
from contextlib import suppress
from pathlib import Path

from nanollama.errors import FormatError, ModelNotFoundError

# What a file that is no model looks like: (offset, bytes there, what to tell the user).
_LOOKALIKES = (
    (0, b"GGUF", "a GGUF file; give its own path"),
    (8, b'{"', "a safetensors file; give the path of the folder with its config.json"),
    (0, b"PK\x03\x04", "a zip archive, perhaps a PyTorch checkpoint, which is never loaded; convert it"),
    (0, b"\x80\x02", "a Python pickle, which is never loaded; convert it"),
    (0, b"\x80\x03", "a Python pickle, which is never loaded; convert it"),
    (0, b"\x80\x04", "a Python pickle, which is never loaded; convert it"),
    (0, b"\x80\x05", "a Python pickle, which is never loaded; convert it"),
    (0, b"version https://git-lfs", "a git-lfs pointer and not the model itself; run `git lfs pull`"),
    (0, b"\x1f\x8b", "a gzip archive; unpack it first"),
    (0, b"\x28\xb5\x2f\xfd", "a zstd archive; unpack it first"),
    (0, b"FUGG", "a GGUF file with its bytes swapped; convert the model again"),
    (0, b"lmgg", "a GGML file older than GGUF; convert the model again"),
    (0, b"fmgg", "a GGML file older than GGUF; convert the model again"),
    (0, b"tjgg", "a GGML file older than GGUF; convert the model again"),
    (0, b"algg", "a GGML adapter older than GGUF; convert it again"),
    (0, b"<", "an HTML or XML page, perhaps a download that needed a login; fetch it again"),
    (0, b"{", "a JSON file"),
    (0, bytes(16), "zeros, perhaps a download that never finished; fetch it again"),
)


def lookalike(start: bytes) -> str | None:
    """What a file that begins with ``start`` seems to be and what to do about it, if that can be told."""
    for offset, magic, meaning in _LOOKALIKES:
        if start[offset : offset + len(magic)] == magic:
            return meaning
    return None


class MappedFile:
    """One mapped file, called ``kind`` in errors.

    ``view`` is the whole file. ModelNotFoundError if there is no such file, FormatError if it is empty or
    can't be mapped.
    """

    def __init__(self, path: Path, kind: str) -> None:
        self.path = path
        self._map = _mapped(path, kind)
        self.view = memoryview(self._map)
        self._closed = False

    def content(self) -> memoryview:
        """The whole file. FormatError if it has shrunk since it was opened."""
        if self._closed:
            raise ValueError(f"{self.path.name} has been closed")
        size = self._map.size()
        if size < len(self.view):
            raise FormatError(
                f"{self.path.name} had {len(self.view)} bytes when it was opened and has {size} now: "
                "something cut it short while it was in use; fetch it again"
            )
        return self.view

    def release(self, start: int, size: int) -> None:
        """Lets the system drop the pages that lie wholly in a range; they are read again when needed."""
        first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        whole = (start + size) // mmap.PAGESIZE * mmap.PAGESIZE - first
        if whole > 0 and sys.platform == "linux" and not self._closed:
            self._map.madvise(mmap.MADV_DONTNEED, first, whole)

    def close(self) -> None:
        """Lets the file go. Views handed out before stay readable; reading more is a ValueError."""
        self._closed = True
        self.view.release()
        # While views are in use the map can't be closed; it goes when the last of them does.
        with suppress(BufferError):
            self._map.close()


def _mapped(path: Path, kind: str) -> mmap.mmap:
    """The file as a read-only map. Opening a FIFO would block, so its kind is looked at first."""
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise FormatError(
                f"{path.name} is a folder, but a {kind} was expected; give the path of the file"
            )
        if not stat.S_ISREG(status.st_mode):
            raise FormatError(f"{path.name} is not a regular file, but a {kind} was expected")
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise FormatError(f"{path.name} is not a regular file, but a {kind} was expected")
            if status.st_size == 0:
                raise FormatError(f"{path.name} is empty, but a {kind} was expected; fetch it again")
            return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        raise ModelNotFoundError(f"{path.name} does not exist; check the path") from None
    except (OSError, ValueError) as error:
        # ValueError: a NUL in the path, or a file that became empty in between.
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise FormatError(f"{path.name} cannot be read: {reason}") from None
