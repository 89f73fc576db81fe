"""What is spelled piece by piece for a stream is, byte for byte, the JSON of its chunks."""

import json
from types import SimpleNamespace
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanollama.server.answering import OpenAIJob
from nanollama.server.fields import ChatRequest, CompletionRequest
from nanollama.server.jobs import Opened
from nanollama.server.wire import spelled
from nanollama.types import Completion, Logprob, TextEvent, Timings
from server.scripted import ByteTokenizer

REQUESTS = {
    "chat": ChatRequest.read({"model": "m", "messages": [{"role": "user", "content": "hi"}], "n": 2}),
    "chat with usage": ChatRequest.read(
        {
            "model": 'a ""content":"" \\ é',
            "messages": [{"role": "user", "content": "hi"}],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ),
    "completion": CompletionRequest.read({"model": "m", "prompt": "hi", "stream": True}),
    "completion with echo": CompletionRequest.read({"model": "m", "prompt": "hi", "n": 2, "echo": True}),
    "prompt alone": CompletionRequest.read(
        {"model": "m", "prompt": "hi", "n": 2, "echo": True, "max_tokens": 0}
    ),
}
DONE = Completion("", (1, 2), "stop", 3, Timings(3, 0.1, 1, 0.1))
TEXTS = st.one_of(st.text(max_size=5), st.sampled_from(['"', '""', "\\", "\u2028", "\0", "😀", "</s>"]))
EVENTS = st.builds(
    TextEvent,
    TEXTS,
    st.sampled_from([None, None, None, DONE]),
    st.sampled_from([(), (), (Logprob(65, -0.5, ((66, -1.0),)),)]),
)


def replies(request):
    """Two that know of the same request and of the same second."""
    opened = Opened("req_1", "0", 0.0, 0.0, SimpleNamespace(tokenizer=ByteTokenizer()), [(1, 2)] * 2)
    with mock.patch("time.time", return_value=1e9):
        return OpenAIJob(request).reply(opened), OpenAIJob(request).reply(opened)


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS.keys())
@given(events=st.lists(st.tuples(st.integers(0, 1), EVENTS), max_size=12))
def test_what_is_spelled_for_a_stream_is_the_json_of_its_chunks(request_, events):
    fast, slow = replies(request_)
    for index, event in events:
        assert fast.spelled(index, event) == [spelled(chunk) for chunk in slow.chunks(index, event)]
    assert fast.completions == slow.completions


def test_text_alone_takes_no_chunk(monkeypatch):
    reply, _ = replies(REQUESTS["chat"])
    reply.spelled(0, TextEvent("a"))
    reply.spelled(0, TextEvent("b"))
    monkeypatch.setattr(reply, "chunks", None)
    (chunk,) = reply.spelled(0, TextEvent("c"))
    assert json.loads(chunk)["choices"][0]["delta"] == {"content": "c"}
