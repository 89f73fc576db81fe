"""Several answers become one stream; no reader can make it grow."""

import asyncio

import pytest

from nanollama.server.relay import Relay, joined
from nanollama.types import Logprob, TextEvent
from server.scripted import ScriptedLLM
from server.worlds import run


def start(words, n=1, **options):
    llm = ScriptedLLM()
    options = {"max_tokens": None, "stop": ()} | options
    return llm, llm.start(words, n=n, **options)


async def texts(relay):
    found = {}
    while batch := await relay.next_batch(5):
        for index, event in batch:
            found[index] = found.get(index, "") + event.text
    return found


def test_all_answers_come_through_whole():
    async def main():
        llm, answers = start("tokens=5 delay=0.001", n=3)
        relay = Relay(answers, 256)
        assert await texts(relay) == dict.fromkeys(range(3), "abcde")
        relay.close()
        assert not llm.engine.open

    run(main())


@pytest.mark.parametrize("limit", [1, 2, 7])
def test_a_reader_that_sleeps_finds_few_events_and_all_text(limit):
    async def main():
        _, answers = start("tokens=500", n=2, logprobs=0)
        relay = Relay(answers, limit)
        await asyncio.sleep(0.1)
        batch = await relay.next_batch()
        assert len(batch) <= limit + 1, "one event more where the second answer has none to be joined with"
        for index in range(2):
            events = [event for at, event in batch if at == index]
            assert len("".join(event.text for event in events)) == 500
            assert sum(len(event.logprobs) for event in events) == 501
            assert events[-1].completion is not None
        assert await relay.next_batch() == []
        relay.close()

    run(main())


def test_a_failure_comes_after_what_came_before_it_and_ends_the_others():
    async def main():
        llm, answers = start("tokens=9 fail=3", n=2)
        relay = Relay(answers, 256)
        await asyncio.sleep(0.05)
        assert [event.text for index, event in await relay.next_batch() if index == 0] == ["a", "b", "c"]
        with pytest.raises(Exception, match="out of blocks"):
            await relay.next_batch()
        relay.close()
        assert not llm.engine.open

    run(main())


def test_it_can_be_ended_from_outside():
    async def main():
        llm, answers = start("hang=1")
        relay = Relay(answers, 256)
        await relay.next_batch(5)
        relay.fail(ValueError("stop"))
        with pytest.raises(ValueError, match="stop"):
            await relay.next_batch(5)
        relay.close()
        assert not llm.engine.open

    run(main())


def test_waiting_has_an_end_and_can_go_on():
    async def main():
        _, answers = start("tokens=1 prefill=0.1")
        relay = Relay(answers, 256)
        with pytest.raises(TimeoutError):
            await relay.next_batch(0.02)
        assert relay.progress() == "prefill 3/20"
        assert len(await relay.next_batch(5)) == 1
        relay.close()

    run(main())


def test_joining_events_keeps_all_that_they_hold():
    first = TextEvent("a", None, (Logprob(1, -1.0),), (Logprob(2, -1.0),))
    second = TextEvent("b", None, (Logprob(3, -1.0),))
    assert joined(first, second) == TextEvent(
        "ab", None, first.logprobs + second.logprobs, first.prompt_logprobs
    )
