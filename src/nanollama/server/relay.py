"""Answers of the engine in, one ordered stream of events out, at a pace that no reader can hold up.

At most ``limit`` events wait; beyond that, pieces of one answer are joined, so that no text is lost and the
engine never waits. Closing a relay, at whatever moment, aborts all its answers.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from nanollama.server.alarm import Alarm
from nanollama.types import TextEvent

if TYPE_CHECKING:
    from nanollama.answer import Answer


class Relay:
    """The events of several answers as they come: ``(index, event)`` pairs, in batches."""

    def __init__(self, answers: Sequence["Answer"], limit: int) -> None:
        self.answers = answers
        self._limit = limit
        self._waiting: deque[tuple[int, TextEvent]] = deque()
        self._news = asyncio.Event()
        self._alarm = Alarm(self._news.set)
        self._error: BaseException | None = None
        self._running = len(answers)
        for index, answer in enumerate(answers):
            answer.listen(partial(self._put, index))

    def _put(self, index: int, event: TextEvent | Exception) -> None:
        if isinstance(event, Exception):
            self._running -= 1
            self.fail(event)
            return
        self._running -= event.completion is not None
        self._news.set()
        if len(self._waiting) >= self._limit:
            for at in range(len(self._waiting) - 1, -1, -1):
                if self._waiting[at][0] == index:
                    self._waiting[at] = index, joined(self._waiting[at][1], event)
                    return
        self._waiting.append((index, event))

    def fail(self, error: Exception) -> None:
        """End the stream with ``error`` after the events that came before it."""
        self._error = self._error or error
        self._news.set()
        for answer in self.answers:
            answer.abort()

    async def next_batch(self, timeout_s: float | None = None) -> list[tuple[int, TextEvent]]:
        """All events that wait, at least one; an empty list at the end.

        Raises:
            TimeoutError: nothing came within ``timeout_s``.
            Exception: what an answer failed with.
        """
        if not self._waiting and self._error is None and self._running:
            self._news.clear()
            if timeout_s is not None:
                self._alarm.set(timeout_s)
            await self._news.wait()
            self._alarm.clear()
        batch = list(self._waiting)
        self._waiting.clear()
        if batch or not (self._error or self._running):
            return batch
        raise self._error or TimeoutError

    def close(self) -> None:
        """Abort what still runs."""
        self._alarm.close()
        for answer in self.answers:
            answer.abort()

    def progress(self) -> str:
        """What the answers are at, for a reader that waits: ``queued`` or ``prefill 512/2048``."""
        states = [answer.progress for answer in self.answers]
        for wanted in ("decode", "prefill"):
            found = [(done, total) for state, done, total in states if state == wanted]
            if found:
                done, total = (sum(numbers) for numbers in zip(*found, strict=True))
                return f"{wanted} {done}/{total}"
        return "queued"


def joined(first: TextEvent, second: TextEvent) -> TextEvent:
    """Two events of one answer as one."""
    return TextEvent(
        first.text + second.text,
        second.completion,
        first.logprobs + second.logprobs,
        first.prompt_logprobs + second.prompt_logprobs,
    )
