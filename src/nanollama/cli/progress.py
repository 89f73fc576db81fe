"""Progress on stderr: begin, update, end in; a bar on a terminal, a few plain lines elsewhere out."""

import shutil
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import TextIO

_REDRAW_S = 0.1
_PLAIN_STEP = 0.25
"""Without a terminal, a line is printed each time this share of the work is done."""

_SAMPLES = 30
_SAMPLE_S = 0.5
"""Speed and time left are those of the last 15 seconds: a connection is rarely as fast as it was at first."""


class ProgressBar:
    """One line with the share done, the speed and the time left. Implements ``store.transfer.Progress``.

    ``unit`` ``B`` counts bytes and shows MB; any other unit is shown as it is.
    """

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream or sys.stderr
        self._clock = clock
        self._on_terminal = self._stream.isatty()
        self._drawn = False
        self._what, self._unit = "", "B"
        self._total = self._first = self._done = 0
        self._began = self._next_redraw = 0.0
        self._next_plain = 0
        self._samples: deque[tuple[float, int]] = deque(maxlen=_SAMPLES)

    def begin(self, what: str, total: int, done: int = 0, unit: str = "B") -> None:
        self._what, self._total, self._first, self._done, self._unit = what, total, done, done, unit
        self._began = self._next_redraw = self._clock()
        self._next_plain = done + round(total * _PLAIN_STEP)
        self._samples.clear()
        self._samples.append((self._began, done))
        if not self._on_terminal:
            start = f" from {self._amount(done)}" if done else ""
            self._print(f"{what}: {self._amount(total)}{start}")

    def update(self, done: int) -> None:
        self._done = done
        if (now := self._clock()) - self._samples[-1][0] >= _SAMPLE_S:
            self._samples.append((now, done))
        if not self._on_terminal:
            if done >= self._next_plain and done < self._total:
                self._next_plain = done + round(self._total * _PLAIN_STEP)
                self._print(f"{self._what}: {self._percent():3.0f} %, {self._speed()}")
        elif self._clock() >= self._next_redraw:
            self._next_redraw = self._clock() + _REDRAW_S
            self._draw()

    def end(self) -> None:
        if self._on_terminal:
            self._draw()
            self._stream.write("\n")
            self._stream.flush()
            self._drawn = False
        elif self._done >= self._total:
            self._samples.appendleft((self._began, self._first))  # at the end, the speed of the whole
            self._print(f"{self._what}: done, {self._speed()}")

    def notice(self, text: str) -> None:
        if self._drawn:
            self._stream.write("\r\x1b[K")
            self._drawn = False
        self._print(text)

    def _print(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()

    def _draw(self) -> None:
        columns = shutil.get_terminal_size().columns
        text = (
            f" {self._percent():3.0f} %  {self._amount(self._done)}  {self._speed()}  {self._left()}".ljust(
                44
            )
        )
        width = max(0, min(40, columns - len(self._what) - len(text) - 4))
        filled = round(width * self._percent() / 100)
        bar = f" {'━' * filled}{'╌' * (width - filled)}" if width >= 8 and _can_encode(self._stream) else ""
        self._stream.write(f"\r\x1b[K{f'{self._what}{bar}{text}'[: columns - 1]}")
        self._stream.flush()
        self._drawn = True

    def _percent(self) -> float:
        return min(100.0, 100 * self._done / self._total) if self._total else 100.0

    def _rate(self) -> float:
        """Units a second of late, 0 while nothing is known."""
        since, before = self._samples[0]
        elapsed = self._clock() - since
        return (self._done - before) / elapsed if elapsed > 0 else 0.0

    def _speed(self) -> str:
        if self._unit == "B":
            return f"{self._rate() / 1e6:.1f} MB/s"
        return f"{self._rate():.0f} {self._unit}/s"

    def _left(self) -> str:
        if self._done >= self._total or not (rate := self._rate()):
            return ""
        minutes, seconds = divmod(round((self._total - self._done) / rate), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02}:{seconds:02} left" if hours else f"{minutes}:{seconds:02} left"

    def _amount(self, count: int) -> str:
        if self._unit != "B":
            return f"{count} {self._unit}"
        return f"{count / 1e9:.2f} GB" if count >= 1_000_000_000 else f"{count / 1e6:.1f} MB"


def _can_encode(stream: TextIO) -> bool:
    try:
        "━╌".encode(stream.encoding or "ascii")
    except (LookupError, UnicodeEncodeError):
        return False
    return True
