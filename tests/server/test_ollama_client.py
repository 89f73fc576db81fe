"""Ollama's own Python client, synchronous and asynchronous, does what it can against the real application."""

import asyncio
import re

import ollama
import pytest

from server.worlds import LiveServer

CHAT = [{"role": "user", "content": "tokens=4"}]


@pytest.fixture(scope="module")
def client(live):
    with live.ollama() as client:
        yield client


def whole(parts, field):
    return "".join(field(part) for part in parts)


def test_a_chat_is_answered_whole(client):
    reply = client.chat("scripted", CHAT)
    assert reply.message.content == "abcd"
    assert (reply.model, reply.done, reply.done_reason) == ("scripted", True, "stop")
    assert (reply.prompt_eval_count, reply.eval_count) == (8, 5)
    assert reply.total_duration >= reply.load_duration > 0
    assert reply.eval_duration == 10_000_000


def test_a_chat_is_streamed_and_says_the_same(client):
    parts = list(client.chat("scripted", CHAT, stream=True))
    assert whole(parts, lambda part: part.message.content) == "abcd"
    assert [part.done for part in parts] == [False] * 4 + [True]
    assert parts[-1].done_reason == "stop"
    assert parts[-1].eval_count == 5


def test_a_prompt_is_answered_and_goes_on_from_its_context(live, client):
    first = client.generate("scripted", "tokens=2", system="Be brief.")
    assert first.response == "ab"
    assert live.last_call["prompt"][0] == {"role": "system", "content": "Be brief."}
    parts = list(client.generate("scripted", "tokens=3", context=first.context, stream=True))
    assert whole(parts, lambda part: part.response) == "abc"
    assert live.last_call["context_ids"] == first.context
    assert parts[0].context is None
    assert parts[-1].context[: len(b"tokens=3")] == [*b"tokens=3"]


def test_logprobs_come_with_their_tokens(client):
    reply = client.chat("scripted", CHAT, logprobs=True, top_logprobs=2)
    assert [each.token for each in reply.logprobs] == list("abcd")
    assert reply.logprobs[0].logprob == -0.25
    assert [each.token for each in reply.logprobs[0].top_logprobs] == ["a", "b"]


def test_a_limit_ends_an_answer(client):
    reply = client.generate("scripted", "tokens=9", options={"num_predict": 3})
    assert (reply.response, reply.done_reason, reply.eval_count) == ("abc", "length", 3)


def test_models_are_listed_shown_and_seen_running(client):
    assert [model.model for model in client.list().models] == ["scripted"]
    shown = client.show("scripted")
    assert shown.capabilities == ["completion"]
    assert shown.details.format == "gguf"
    client.chat("scripted", CHAT, keep_alive="1h")
    (running,) = client.ps().models
    assert (running.model, running.context_length, running.size_vram) == ("scripted", 2000, 0)
    assert running.expires_at is not None


@pytest.mark.parametrize(
    ("call", "status", "message"),
    [
        (lambda c: c.chat("none", CHAT), 404, "model 'none' not found"),
        (lambda c: c.generate("none", "hi"), 404, "model 'none' not found"),
        (lambda c: c.show("none"), 404, "model 'none' not found"),
        (lambda c: c.delete("none"), 404, "model 'none' not found"),
        (lambda c: c.copy("none", "other"), 404, 'model "none" not found'),
        (lambda c: c.chat("scripted", CHAT, think=True), 400, '"scripted" does not support thinking'),
        (lambda c: c.generate("scripted", "a", suffix="b"), 400, '"scripted" does not support insert'),
        (lambda c: c.embed("scripted", "hi"), 501, "/api/embed is not supported"),
        (lambda c: c.embeddings("scripted", "hi"), 501, "/api/embeddings is not supported"),
        (lambda c: c.push("scripted"), 501, "/api/push is not supported"),
        (lambda c: c.chat("scripted", CHAT, format="json"), 400, "format can't be honoured"),
    ],
)
def test_a_refusal_has_its_status_and_its_sentence(client, call, status, message):
    with pytest.raises(ollama.ResponseError, match=re.escape(message)) as refused:
        call(client)
    assert refused.value.status_code == status


def test_tools_are_refused_with_the_words_that_clients_look_for(client):
    def add(a: int, b: int) -> int:
        """Add two numbers.

        Args:
          a: one
          b: another
        """
        return a + b

    with pytest.raises(ollama.ResponseError, match='"scripted" does not support tools'):
        client.chat("scripted", CHAT, tools=[add])


def test_a_failure_in_the_middle_of_a_stream_is_told(client):
    parts = client.chat("scripted", [{"role": "user", "content": "fail=2"}], stream=True)
    assert next(parts).message.content == "a"
    assert next(parts).message.content == "b"
    with pytest.raises(ollama.ResponseError, match="out of blocks"):
        next(parts)


def test_a_model_is_loaded_and_unloaded_without_a_prompt():
    with LiveServer() as live, live.ollama() as client:
        loaded = client.generate("scripted")
        assert (loaded.done, loaded.done_reason, loaded.response) == (True, "load", "")
        assert len(client.ps().models) == 1
        assert client.chat("scripted", keep_alive=0).done_reason == "unload"
        assert client.ps().models == []
        assert live.source.models["scripted"].closed


def test_the_asynchronous_client_does_the_same(live):
    async def main():
        async with live.ollama(ollama.AsyncClient) as client:
            await does_it(client)

    async def does_it(client):
        reply = await client.chat("scripted", CHAT)
        assert reply.message.content == "abcd"
        parts = [part async for part in await client.chat("scripted", CHAT, stream=True)]
        assert whole(parts, lambda part: part.message.content) == "abcd"
        parts = [part async for part in await client.generate("scripted", "tokens=2", stream=True)]
        assert whole(parts, lambda part: part.response) == "ab"
        assert (await client.list()).models[0].model == "scripted"
        assert (await client.ps()).models[0].model == "scripted"
        with pytest.raises(ollama.ResponseError, match="not found"):
            await client.show("none")

    asyncio.run(main())


def test_a_client_that_leaves_ends_its_answer(live, client):
    parts = client.chat("scripted", [{"role": "user", "content": "tokens=1000 delay=0.01"}], stream=True)
    next(parts)
    parts.close()
    assert live.becomes_quiet()
