"""A caller's end of a request: its events, to be iterated by a thread or by an asyncio task.

The engine thread puts events in; one caller takes them out, in order. Nothing is lost and nothing is waited
for by the engine.
"""

import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from nanollama.errors import NanollamaError
from nanollama.types import Request, TokenEvent

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

State = Literal["queued", "prefill", "decode"]


@dataclass(frozen=True, slots=True)
class Reader:
    """Who takes events on an event loop, where ``ready`` is called whenever there are new ones."""

    loop: "AbstractEventLoop"
    ready: Callable[[], None]


def wake(readers: Iterable[Reader]) -> None:
    """Wake readers from any thread, with one call into each event loop however many of them wait there.

    Each call writes to a pipe and may hand the interpreter over to the loop's thread: one for each of 32
    streams kept the engine from its next step.
    """
    ready: dict[AbstractEventLoop, list[Callable[[], None]]] = {}
    for reader in readers:
        ready.setdefault(reader.loop, []).append(reader.ready)
    for loop, calls in ready.items():
        with suppress(RuntimeError):  # the loop has been closed: then nobody waits any more
            loop.call_soon_threadsafe(_call, calls)


class Waker:
    """Wakes readers in time for their eyes, not for every token.

    A model of 100 MB decodes a token in 4 ms, and to wake an event loop on the processors that decode takes
    0.2 ms of them. So readers with news are kept until ``INTERVAL_S`` after the last were woken, unless there
    is what nobody should wait for. One thread uses it.
    """

    INTERVAL_S = 0.01
    """Shorter than a screen takes to show anything."""

    def __init__(self) -> None:
        self._kept: dict[Reader, None] = {}
        self._woken_at = 0.0

    def keep(self, readers: Iterable[Reader], *, is_urgent: bool = False) -> None:
        """Readers who have news; all are woken where it is urgent, or when the interval is over."""
        self._kept.update(dict.fromkeys(readers))
        if is_urgent or time.perf_counter() - self._woken_at >= self.INTERVAL_S:
            self.wake_all()

    def wake_all(self) -> None:
        """Wake all who were kept."""
        if self._kept:
            wake(self._kept)
            self._kept.clear()
            self._woken_at = time.perf_counter()


class Generation:
    """The events of one request. Iterate it once, by ``for`` or ``async for``; it raises what went wrong."""

    def __init__(self, request_id: int, request: Request, abort: Callable[[int], None]) -> None:
        self.id = request_id
        self.request = request
        self.state: State = "queued"
        self.done_tokens = 0
        self.started: float | None = None  # when its first step began, by time.perf_counter
        self._abort = abort
        self._events: deque[TokenEvent | NanollamaError | None] = deque()
        self._changed = threading.Condition()
        self._reader: Reader | None = None
        self._closed = False

    def abort(self) -> None:
        """End the request: its slot and blocks are free within one step. Any thread, any number of times."""
        self._abort(self.id)
        self.put(None)

    def put(self, event: TokenEvent | NanollamaError | None) -> None:
        """Hand over an event, an error that ends the request, or ``None`` for its end; nothing after it."""
        wake(self.leave(event))

    def leave(self, event: TokenEvent | NanollamaError | None) -> tuple[Reader, ...]:
        """What :meth:`put` does, but for a reader to be woken, if there is one: see :func:`wake`."""
        with self._changed:
            if self._closed:
                return ()
            self._events.append(event)
            self._closed = not isinstance(event, TokenEvent) or event.finish_reason is not None
            self._changed.notify()
            return () if self._reader is None else (self._reader,)

    def listen(self, ready: Callable[[], None]) -> None:
        """Have the running event loop call ``ready`` whenever there is more to :meth:`take`.

        There may be something to take already. ``ready`` does not raise: others are called after it.
        """
        import asyncio  # 20 ms that a thread's caller need not spend

        with self._changed:
            self._reader = Reader(asyncio.get_running_loop(), ready)

    def take(self) -> list[TokenEvent | NanollamaError | None]:
        """All that was put in and not taken yet, without waiting."""
        with self._changed:
            events = list(self._events)
            self._events.clear()
        return events

    def __iter__(self) -> Iterator[TokenEvent]:
        while True:
            with self._changed:
                while not self._events:
                    self._changed.wait()
                event = self._events.popleft()
            if not isinstance(event, TokenEvent):
                _end(event)
                return
            yield event
            if event.finish_reason is not None:
                return

    async def __aiter__(self) -> AsyncIterator[TokenEvent]:
        import asyncio

        ready = asyncio.Event()
        self.listen(ready.set)
        while True:
            ready.clear()
            events = self.take()
            for event in events:
                if not isinstance(event, TokenEvent):
                    _end(event)
                    return
                yield event
                if event.finish_reason is not None:
                    return
            if not events:
                await ready.wait()


def _end(event: NanollamaError | None) -> None:
    if event is not None:
        raise event


def _call(calls: Iterable[Callable[[], None]]) -> None:
    for call in calls:
        call()
