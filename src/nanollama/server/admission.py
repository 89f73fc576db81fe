"""Who may come in: tickets for answers, before a request's body is read, and the end of the server.

A ticket stands for one answer that runs or waits. Every ticket is given back, however its request ends.
"""

import math
import random
import time
from collections.abc import Callable

from nanollama.server.problems import Problem, shutting_down

LONGEST_RETRY_S = 60
LAST_WORDS_S = 3.0
"""How long requests that were told to end may take to say so."""


class Ticket:
    """The right to run ``count`` answers. ``fail`` is called when the server stops before they are done."""

    def __init__(self, admission: "Admission") -> None:
        self._admission = admission
        self._started = time.monotonic()
        self.count = 0
        self.fail: Callable[[Exception], None] | None = None

    def extend(self, count: int) -> None:
        """Make it ``count`` answers. Raises ``Problem`` when there is no room for them."""
        self._admission.take(self, count - self.count)

    def give_back(self) -> None:
        self._admission.give_back(self, time.monotonic() - self._started)


class Admission:
    """Counts answers, refuses what is too much, and turns everyone away once the server is stopping."""

    def __init__(self, max_running: int, max_waiting: int) -> None:
        self._max_running = max_running
        self._room = max_running + max_waiting
        self._open: set[Ticket] = set()
        self._held = 0
        self._mean_s = 1.0
        self.draining = False
        self._expires: float | None = None
        self.expired = False

    @property
    def held(self) -> int:
        """Answers that run or wait."""
        return self._held

    def enter(self) -> Ticket:
        """A ticket for one answer. Raises ``Problem``: 503 while stopping, 429 when the queue is full."""
        if self.draining:
            raise shutting_down()
        ticket = Ticket(self)
        self.take(ticket, 1)
        self._open.add(ticket)
        return ticket

    def take(self, ticket: Ticket, count: int) -> None:
        if self._held + count > self._room:
            raise Problem(
                429,
                f"The queue is full: {self._held} answers run or wait and at most {self._room} may.",
                "queue_full",
                retry_after=self.retry_after(),
            )
        self._held += count
        ticket.count += count

    def give_back(self, ticket: Ticket, lasted_s: float) -> None:
        if ticket in self._open:
            self._open.remove(ticket)
            self._held -= ticket.count
            self._mean_s += 0.1 * (lasted_s - self._mean_s)

    def retry_after(self) -> int:
        """Seconds until the queue has moved on, spread out so that not all come back at once."""
        seconds = self._mean_s * self._held / self._max_running * random.uniform(0.8, 1.2)
        return min(LONGEST_RETRY_S, max(1, math.ceil(seconds)))

    def drain(self, seconds: float) -> None:
        """Let nobody in from here on; after ``seconds`` what still runs is to be ended."""
        self.draining = True
        self._expires = time.monotonic() + seconds

    def drained(self) -> bool:
        """Whether nothing runs any more, or it won't end. Tells what has overrun its time to end."""
        if self._expires is None:
            return False
        late_s = time.monotonic() - self._expires
        if late_s >= 0 and not self.expired:
            self.expired = True
            for ticket in list(self._open):
                if ticket.fail is not None:
                    ticket.fail(shutting_down())
        return not self._open or late_s >= LAST_WORDS_S
