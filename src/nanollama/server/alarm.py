"""An end to waiting: a time limit set again and again in, one call when it is really over out.

Setting it for every token costs no timer each: one that fires too early looks at the clock and waits on.
"""

import asyncio
from collections.abc import Callable


class Alarm:
    """Calls ``ring`` on the running event loop once the time set last is over. Close it in any case."""

    def __init__(self, ring: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._ring = ring
        self._due: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    def set(self, seconds: float) -> None:
        """Ring in ``seconds``, and not when it was to ring before."""
        self._due = self._loop.time() + seconds
        if self._timer is not None and self._timer.when() > self._due:
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            self._timer = self._loop.call_at(self._due, self._look)

    def clear(self) -> None:
        """Don't ring until it is set again."""
        self._due = None

    def close(self) -> None:
        """Never ring again."""
        self._due = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        if self._due is None:
            return
        if self._due > self._loop.time():
            self._timer = self._loop.call_at(self._due, self._look)
            return
        self._due = None
        self._ring()
