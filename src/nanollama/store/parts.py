"""A file on its way: blocks in any order in, and after a kill at any byte what of them can be trusted out.

Beside ``<file>.part`` lies ``<file>.part.map``, text to which a line is appended for each block written:
``start stop crc32``. Opening an unfinished file reads the blocks back and keeps those whose checksum fits, so
neither a torn line nor blocks that a power failure lost are taken for content. A map of another file (its
first line names the size and identity) is as good as none.
"""

import os
import re
import stat
import threading
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_LINE = re.compile(rb"([0-9]{1,16}) ([0-9]{1,16}) ([0-9a-f]{8})")
_CHUNK = 1 << 20
_MAX_MAP_BYTES = 64 << 20

Range = tuple[int, int]
"""Start and stop of bytes in a file, the stop excluded."""


class PartFile:
    """The unfinished form of ``final``, of ``size`` bytes. ``write`` may be called by several threads.

    ``identity`` tells one content from another of the same name, for instance by its digest.
    """

    def __init__(self, final: Path, size: int, identity: str) -> None:
        self.path = final.with_name(f"{final.name}.part")
        self.map_path = final.with_name(f"{final.name}.part.map")
        self.size = size
        self._header = f"nanollama-part 1 {size} {identity.encode().hex()}".encode()
        self._lock = threading.Lock()
        self._data = _open_regular(self.path)
        try:
            self._map = _open_regular(self.map_path, os.O_APPEND)
        except BaseException:
            os.close(self._data)
            raise
        self._closed = False
        self._have: list[Range] = []
        self._continue()

    @property
    def done(self) -> int:
        """Bytes that are there."""
        with self._lock:
            return sum(stop - start for start, stop in self._have)

    def missing(self) -> list[Range]:
        """What is still to be written, in order."""
        gaps, position = [], 0
        with self._lock:
            for start, stop in self._have:
                if start > position:
                    gaps.append((position, start))
                position = stop
        return [*gaps, (position, self.size)] if position < self.size else gaps

    def write(self, start: int, block: bytes) -> None:
        """Puts ``block`` at ``start``. Raises ``ValueError`` once closed: a late thread writes nowhere."""
        stop = start + len(block)
        assert 0 <= start < stop <= self.size, "a block lies inside its file"
        with self._lock:
            if self._closed:
                raise ValueError("the file is closed")
            _write_at(self._data, block, start)
            _append(self._map, b"\n%d %d %08x\n" % (start, stop, zlib.crc32(block)))
            self._have = _union([*self._have, (start, stop)])

    def restart(self) -> None:
        """Forgets everything that was written."""
        with self._lock:
            os.ftruncate(self._map, 0)
            os.ftruncate(self._data, 0)
            _append(self._map, self._header + b"\n")
            self._have = []

    def sync(self) -> None:
        """Puts what was written on disk."""
        os.fsync(self._data)

    def close(self) -> None:
        with self._lock:
            if not self._closed:
                self._closed = True
                os.close(self._data)
                os.close(self._map)

    def discard(self) -> None:
        """Closes and removes the unfinished file."""
        self.close()
        self.path.unlink(missing_ok=True)
        self.map_path.unlink(missing_ok=True)

    @staticmethod
    def publish(final: Path) -> None:
        """Gives the unfinished form of ``final`` its name. It is complete, checked, synced and closed."""
        os.replace(final.with_name(f"{final.name}.part"), final)
        final.with_name(f"{final.name}.part.map").unlink(missing_ok=True)

    def _continue(self) -> None:
        """Takes over what an earlier process left, as far as its checksums fit."""
        lines = []
        if os.fstat(self._map).st_size <= _MAX_MAP_BYTES:
            lines = os.pread(self._map, _MAX_MAP_BYTES, 0).split(b"\n")
        if not lines or lines[0] != self._header or os.fstat(self._data).st_size > self.size:
            self.restart()
            return
        kept = []
        for line in lines[1:]:
            if match := _LINE.fullmatch(line):
                start, stop, checksum = int(match[1]), int(match[2]), int(match[3], 16)
                if start < stop <= self.size and self._crc(start, stop) == checksum:
                    kept.append((start, stop))
        self._have = _union(kept)

    def _crc(self, start: int, stop: int) -> int:
        checksum = 0
        while start < stop and (chunk := os.pread(self._data, min(_CHUNK, stop - start), start)):
            checksum = zlib.crc32(chunk, checksum)
            start += len(chunk)
        return checksum if start == stop else -1


def kept_bytes(final: Path) -> int:
    """Disk space that the unfinished form of ``final`` already takes."""
    with suppress(OSError):
        status = os.lstat(final.with_name(f"{final.name}.part"))
        if stat.S_ISREG(status.st_mode):
            return min(status.st_size, status.st_blocks * 512)
    return 0


def pieces(gaps: list[Range], length: int) -> Iterator[Range]:
    """The ``gaps`` cut into pieces of at most ``length`` bytes, none of which crosses a multiple of it."""
    for start, stop in gaps:
        while start < stop:
            end = min(stop, (start // length + 1) * length)
            yield start, end
            start = end


def _union(ranges: list[Range]) -> list[Range]:
    """The ``ranges`` in order, those that touch or overlap as one."""
    merged: list[Range] = []
    for start, stop in sorted(ranges):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], stop))
        else:
            merged.append((start, stop))
    return merged


def _open_regular(path: Path, extra: int = 0) -> int:
    """A descriptor for reading and writing ``path``; anything but a regular file of that name is replaced."""
    flags = os.O_RDWR | os.O_CREAT | extra
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(os.lstat(path).st_mode):
            path.unlink()
    return os.open(path, flags, 0o644)


def _write_at(descriptor: int, block: bytes, start: int) -> None:
    view = memoryview(block)
    while view:
        written = os.pwrite(descriptor, view, start)
        view, start = view[written:], start + written


def _append(descriptor: int, line: bytes) -> None:
    """One line; a torn one is told by its form, and the line break that each begins with ends it."""
    while line:
        line = line[os.write(descriptor, line) :]
