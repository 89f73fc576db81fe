"""Matrices waiting to be packed: what was queued while the tape was recorded is done beside the caller.

The kernels copy without Python's lock, so a program can build its tokenizer meanwhile.
"""

from collections.abc import Callable
from threading import Thread

import numpy as np
from numpy.typing import NDArray

from nanollama.backends.native.tape import Pool, Retile

MAX_WAITING_BYTES = 256 << 20
"""Of sources. At more the queue is worked off at once, so that a large file is never mapped whole."""


class RepackQueue:
    """Packs matrices with a pool's threads, which must not replay between :meth:`start` and :meth:`wait`."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._jobs: list[Retile] = []
        self._sources: list[tuple[NDArray[np.uint8], Callable[[], None]]] = []
        self._waiting_bytes = 0
        self._thread: Thread | None = None
        self._error: BaseException | None = None

    def add(
        self,
        source: NDArray[np.uint8],
        target: int,
        *,
        ggml_type: int,
        rows: int,
        columns: int,
        release: Callable[[], None],
    ) -> None:
        """Have ``source``, ``[rows, bytes per row]``, packed to address ``target``, then call ``release``."""
        source = np.ascontiguousarray(source)
        row_bytes = source.size // rows
        self._jobs.append(Retile(ggml_type, source.ctypes.data, row_bytes, rows, columns, target))
        self._sources.append((source, release))
        self._waiting_bytes += source.nbytes
        if self._waiting_bytes > MAX_WAITING_BYTES:
            self._work_off()

    def start(self) -> None:
        """Begin to pack what is left; :meth:`wait` says when it is done."""
        self._thread = Thread(target=self._work_off_aside, name="nanollama-repack")
        self._thread.start()

    def wait(self) -> None:
        """Return when all is packed; what went wrong meanwhile is raised here."""
        self.join()
        if self._error is not None:
            raise self._error

    def join(self) -> None:
        """Return when the pool is free again."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _work_off_aside(self) -> None:
        try:
            self._work_off()
        except BaseException as error:
            self._error = error

    def _work_off(self) -> None:
        self._pool.retile((Retile * len(self._jobs))(*self._jobs))
        for _, release in self._sources:
            release()
        self._jobs.clear()
        self._sources.clear()
        self._waiting_bytes = 0
