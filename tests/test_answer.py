"""Tokens become events: log-probabilities come with their text, and what is queued is not counted as work."""

import pytest

from nanollama.answer import Answer, fold
from nanollama.engine.generation import Generation
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
