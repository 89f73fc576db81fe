"""The caller's end of a request: readers are woken together, and one that has gone is nobody's trouble."""

import asyncio
import threading

from nanollama.engine.generation import Generation, Reader, Waker, wake
from nanollama.types import Request, SamplingParams, TokenEvent


class CountingLoop:
    """Notes what is to be called in it."""

    def __init__(self) -> None:
        self.calls = []

    def call_soon_threadsafe(self, work, *args) -> None:
        self.calls.append((work, args))


def generation() -> Generation:
    return Generation(0, Request((1,), SamplingParams(), 100, frozenset()), lambda _: None)


def test_a_loop_is_called_once_for_all_its_readers() -> None:
    first, second = CountingLoop(), CountingLoop()
    events = [asyncio.Event() for _ in range(4)]
    loops = (first, second, first, first)
    readers = [Reader(loop, event.set) for loop, event in zip(loops, events, strict=True)]
    wake(readers)
    assert (len(first.calls), len(second.calls)) == (1, 1)
    for loop in (first, second):
        for work, args in loop.calls:
            work(*args)
    assert all(event.is_set() for event in events)
    wake([])
    assert (len(first.calls), len(second.calls)) == (1, 1)


def test_a_reader_whose_loop_is_closed_is_passed_over() -> None:
    closed, left = asyncio.new_event_loop(), CountingLoop()
    closed.close()
    wake([Reader(closed, asyncio.Event().set), Reader(left, asyncio.Event().set)])
    assert len(left.calls) == 1


def test_readers_are_woken_together_when_the_interval_is_over(monkeypatch) -> None:
    now = 100.0
    monkeypatch.setattr("nanollama.engine.generation.time.perf_counter", lambda: now)
    loop, waker = CountingLoop(), Waker()
    one, other = (Reader(loop, asyncio.Event().set) for _ in range(2))
    waker.keep([one])
    assert len(loop.calls) == 1, "nobody was woken before"
    for now, reader in ((100.004, one), (100.006, other), (100.008, one)):  # noqa: B007 (the clock reads it)
        waker.keep([reader])
    assert len(loop.calls) == 1
    now = 100.0 + Waker.INTERVAL_S
    waker.keep([])
    ((_, first), (_, second)) = loop.calls
    assert (len(*first), len(*second)) == (1, 2), "a reader with more news is called once"
    now = 200.0
    waker.keep([])
    assert len(loop.calls) == 2, "nobody has news"


def test_all_kept_readers_can_be_woken_at_once() -> None:
    loop, waker = CountingLoop(), Waker()
    waker.keep([Reader(loop, asyncio.Event().set)])
    waker.keep([Reader(loop, asyncio.Event().set)])
    waker.wake_all()
    waker.wake_all()
    assert len(loop.calls) == 2


def test_who_leaves_an_event_is_told_whom_to_wake() -> None:
    one = generation()
    assert one.leave(TokenEvent(5)) == ()

    async def main() -> list[int]:
        taken = []
        async for event in one:
            taken.append(event.token_id)
            if event.token_id == 5:
                thread = threading.Thread(target=lambda: wake(one.leave(TokenEvent(6, "length"))))
                thread.start()
        thread.join()
        return taken

    assert asyncio.run(main()) == [5, 6]
    assert one.leave(TokenEvent(7)) == (), "nothing comes after the end"
