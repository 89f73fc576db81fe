"""The caller's end of a request: readers are woken together, and one that has gone is nobody's trouble."""

import asyncio
import threading

from nanollama.engine.generation import Generation, Reader, wake
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
