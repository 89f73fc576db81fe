"""A caller's end of a request: its events, to be iterated by a thread or by an asyncio task.

The engine thread puts events in; one caller takes them out, in order. Nothing is lost and nothing is waited
for by the engine.
"""

import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Literal

from nanollama.errors import NanollamaError
from nanollama.types import Request, TokenEvent

State = Literal["queued", "prefill", "decode"]


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
        self._wake: Callable[[], object] | None = None  # wakes the asyncio task that waits, from any thread
        self._closed = False

    def abort(self) -> None:
        """End the request: its slot and blocks are free within one step. Any thread, any number of times."""
        self._abort(self.id)
        self.put(None)

    @property
    def n_pending(self) -> int:
        """Events that nobody has taken yet; a reader that is too slow shows here."""
        return len(self._events)

    def put(self, event: TokenEvent | NanollamaError | None) -> None:
        """Hand over an event, an error that ends the request, or ``None`` for its end; nothing after it."""
        with self._changed:
            if self._closed:
                return
            self._events.append(event)
            self._closed = not isinstance(event, TokenEvent) or event.finish_reason is not None
            self._changed.notify()
            wake = self._wake
        if wake is not None:
            wake()

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
        import asyncio  # 20 ms that a thread's caller need not spend

        loop, ready = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            # The loop may have been closed since: then nobody waits any more.
            if not loop.is_closed():
                loop.call_soon_threadsafe(ready.set)

        with self._changed:
            self._wake = wake
        while True:
            ready.clear()
            with self._changed:
                events = list(self._events)
                self._events.clear()
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
