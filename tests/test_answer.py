"""Tokens become events: log-probabilities come with their text, and what is queued is not counted as work."""

import asyncio
import threading

import pytest

from nanollama.answer import Answer, fold
from nanollama.engine.generation import Generation
from nanollama.errors import BackendError, NanollamaError
from nanollama.types import Logprob, Request, SamplingParams, TokenEvent
from server.scripted import END, ByteTokenizer


def answer_of(text, stop=()):
    """An answer whose tokens are the bytes of ``text``, and then the end of the turn."""
    request = Request((1, 2), SamplingParams(), 100, frozenset({END}), stop=stop, logprobs=0)
    generation = Generation(0, request, lambda _: None)
    for token in text.encode():
        generation.put(TokenEvent(token, logprob=Logprob(token, -0.5)))
    generation.put(TokenEvent(END, "stop", logprob=Logprob(END, -0.1)))
    return Answer(generation, ByteTokenizer())


@pytest.mark.parametrize(
    ("text", "stop", "shown"),
    [
        ("hello", (), "hello"),
        ("hello STOP more", ("STOP",), "hello "),
        ("STOP", ("STOP",), ""),
        ("a STO b STOP", ("STOP",), "a STO b "),
        ("größer STOP", ("STOP",), "größer "),
        ("a\n\nb", ("\n\n", "zzz"), "a"),
    ],
)
def test_only_what_is_shown_has_log_probabilities(text, stop, shown):
    events = list(answer_of(text, stop))
    completion = events[-1].completion
    assert completion.text == shown == "".join(event.text for event in events)
    ids = [each.token_id for event in events for each in event.logprobs if each.token_id != END]
    assert bytes(ids).decode() == shown


def test_log_probabilities_never_come_before_their_text():
    seen, text = 0, ""
    for event in answer_of("a STO b", ("STOP",)):
        seen += sum(each.token_id != END for each in event.logprobs)
        text += event.text
        assert seen == len(text)


def test_the_time_in_the_queue_is_told_apart_from_the_work():
    answer = answer_of("ab")
    generation = answer._generation
    generation.started = answer._fold._start + 5.0
    timings = fold(answer).timings
    assert timings.queue_s == pytest.approx(5.0)
    assert timings.prefill_s < 5.0


def heard(generation, during=lambda: None):
    """What comes of listening to an answer, while ``during`` runs in a thread of its own."""

    async def main():
        told, ended = [], asyncio.Event()

        def put(event):
            told.append(event)
            if isinstance(event, Exception) or event.completion is not None:
                ended.set()

        Answer(generation, ByteTokenizer()).listen(put)
        thread = threading.Thread(target=during)
        thread.start()
        await asyncio.wait_for(ended.wait(), 10)
        thread.join()
        await asyncio.sleep(0.01)  # whatever else would come
        return told

    return asyncio.run(main())


def generation_of(stop=()):
    aborts = []
    request = Request((1, 2), SamplingParams(), 100, frozenset({END}), stop=stop)
    return Generation(0, request, aborts.append), aborts


@pytest.mark.parametrize(("text", "stop"), [("hello", ()), ("größer STOP more", ("STOP",)), ("", ())])
@pytest.mark.parametrize("late", [False, True])
def test_who_listens_hears_what_a_reader_reads(text, stop, late):
    generation, aborts = generation_of(stop)

    def make():
        for token in text.encode():
            generation.put(TokenEvent(token))
        generation.put(TokenEvent(END, "stop"))

    if late:
        told = heard(generation, make)
    else:
        make()
        told = heard(generation)
    read = list(answer_of(text, stop))
    assert [event.text for event in told] == [event.text for event in read]
    assert told[-1].completion.text == read[-1].completion.text
    assert all(event.completion is None for event in told[:-1])
    assert bool(aborts) == bool(stop), "the engine is told of a stop string, and of nothing else"


@pytest.mark.parametrize(
    ("end", "error"), [(BackendError("out of blocks"), BackendError), (None, NanollamaError)]
)
def test_who_listens_is_told_once_what_went_wrong_after_what_came_before(end, error):
    generation, _ = generation_of()

    def make():
        generation.put(TokenEvent(65))
        generation.put(end)

    first, last = heard(generation, make)
    assert first.text == "A"
    assert type(last) is error


def test_a_token_that_cannot_be_read_ends_the_answer_and_not_the_loop():
    generation, aborts = generation_of()
    generation.put(TokenEvent(65))
    generation.put(TokenEvent(10_000))
    first, last = heard(generation, lambda: generation.put(TokenEvent(66)))
    assert first.text == "A"
    assert "no token 10000" in str(last)
    assert aborts == [0]
