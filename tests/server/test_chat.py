"""Chat completions through OpenAI's own client."""

import asyncio
import json

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from nanollama.server.settings import Limits
from server.scripted import ScriptedSource
from server.worlds import LiveServer, World, run

HELLO = [{"role": "user", "content": "Say something. tokens=5"}]


def chat(client, messages=None, **options):
    return client.chat.completions.create(model="scripted", messages=messages or HELLO, **options)


def raw_stream(live, **options):
    """The bytes of a streamed answer."""
    body = {"model": "scripted", "messages": HELLO, "stream": True, **options}
    reply = httpx.post(f"{live.url}/v1/chat/completions", json=body, timeout=20)
    return reply


def data_of(reply):
    """The data of each event of a stream, parsed but for the marker at its end."""
    events = reply.text.split("\n\n")
    assert events.pop() == ""
    assert all(event.startswith(("data: ", ": ")) and "\n" not in event for event in events)
    data = [event.removeprefix("data: ") for event in events if event.startswith("data: ")]
    assert data.pop() == "[DONE]"
    return [json.loads(each) for each in data]


def test_a_whole_reply_has_text_reason_and_usage(client):
    reply = chat(client)
    assert reply.choices[0].message.content == "abcde"
    assert reply.choices[0].message.role == "assistant"
    assert reply.choices[0].finish_reason == "stop"
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens, reply.usage.total_tokens) == (23, 6, 29)
    assert reply.usage.prompt_tokens_details.cached_tokens == 2
    assert reply.id.startswith("chatcmpl-")
    assert reply.model == "scripted"


def test_a_stream_begins_with_the_role_and_ends_with_the_reason(live):
    reply = raw_stream(live)
    assert reply.headers["content-type"].startswith("text/event-stream")
    chunks = data_of(reply)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert [chunk["choices"][0]["delta"] for chunk in chunks[1:-1]] == [{"content": c} for c in "abcde"]
    assert chunks[-1]["choices"][0]["delta"] == {}
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 6 + ["stop"]
    assert len({(chunk["id"], chunk["created"], chunk["object"]) for chunk in chunks}) == 1
    assert all("usage" not in chunk for chunk in chunks)


def test_include_usage_sends_a_last_chunk_without_choices(live):
    chunks = data_of(raw_stream(live, stream_options={"include_usage": True}))
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["total_tokens"] == 29
    assert all(chunk["usage"] is None for chunk in chunks[:-1])


@pytest.mark.parametrize(
    "options",
    [{}, {"n": 3}, {"logprobs": True}, {"logprobs": True, "top_logprobs": 2, "n": 2}, {"max_tokens": 2}],
    ids=str,
)
def test_streamed_and_whole_replies_are_the_same(client, options):
    whole = chat(client, **options)
    stream = chat(client, stream=True, stream_options={"include_usage": True}, **options)
    texts, reasons, logprobs, usage = {}, {}, {}, None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
            reasons[choice.index] = choice.finish_reason
            if choice.logprobs:
                logprobs.setdefault(choice.index, []).extend(choice.logprobs.content)
    assert len(whole.choices) == options.get("n", 1)
    for choice in whole.choices:
        assert texts[choice.index] == choice.message.content
        assert reasons[choice.index] == choice.finish_reason
        assert logprobs.get(choice.index) == (choice.logprobs and choice.logprobs.content)
    assert usage == whole.usage


@pytest.mark.parametrize("options", [{}, {"logprobs": True, "top_logprobs": 3, "n": 2}], ids=str)
def test_replies_and_chunks_have_the_published_shape(live, options):
    body = {"model": "scripted", "messages": HELLO, **options}
    whole = httpx.post(f"{live.url}/v1/chat/completions", json=body).json()
    assert ChatCompletion.model_validate(whole).model_dump(exclude_unset=True) == whole
    for chunk in data_of(raw_stream(live, stream_options={"include_usage": True}, **options)):
        assert ChatCompletionChunk.model_validate(chunk).model_dump(exclude_unset=True) == chunk


def test_logprobs_come_with_bytes_and_alternatives_and_without_the_end_of_turn(client):
    content = chat(client, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    assert [each.token for each in content] == list("abcde")
    assert content[1].bytes == [ord("b")]
    assert [(each.token, each.logprob) for each in content[1].top_logprobs] == [("a", -0.5), ("b", -1.5)]


def test_each_choice_has_a_text_of_its_own_and_the_prompt_counts_once(client):
    reply = chat(client, n=4)
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (23, 24)


def test_what_is_unset_is_left_to_the_model(live, client):
    chat(client)
    assert not {"temperature", "top_p", "top_k", "seed", "repeat_penalty"} & set(live.last_call)


def test_what_is_set_reaches_the_model_under_its_name(live, client):
    extra = {"top_k": -1, "min_p": 0.1, "repetition_penalty": 1.2, "min_tokens": 2, "ignore_eos": True}
    chat(
        client,
        temperature=0,
        top_p=0.5,
        seed=-7,
        stop=["x", "yz"],
        max_completion_tokens=4,
        presence_penalty=1.5,
        frequency_penalty=-2,
        logit_bias={"65": -100},
        extra_body=extra | {"add_generation_prompt": False, "chat_template_kwargs": {"thinking": False}},
    )
    wanted = {"temperature": 0, "top_p": 0.5, "top_k": 0, "min_p": 0.1, "repeat_penalty": 1.2, "seed": -7}
    wanted |= {"presence_penalty": 1.5, "frequency_penalty": -2, "logit_bias": {65: -100}, "max_tokens": 4}
    wanted |= {"stop": ("x", "yz"), "min_tokens": 2, "ignore_eos": True, "add_generation_prompt": False}
    wanted |= {"template_kwargs": {"thinking": False}, "context_policy": "error"}
    assert wanted.items() <= live.last_call.items()


def test_messages_reach_the_model_as_role_and_text(live, client):
    chat(
        client,
        [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "name": "Ada", "content": [{"type": "text", "text": "Hi "}] * 2},
            {"role": "assistant", "content": "Hello.", "refusal": None, "tool_calls": []},
            {"role": "user", "content": "Go on."},
        ],
    )
    assert live.last_call["prompt"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi Hi ", "name": "Ada"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Go on."},
    ]


BAD_MESSAGES = [
    ([], "messages"),
    ("hi", "messages"),
    (["hi"], "messages[0]"),
    ([{"role": "user"}], "messages[0].content"),
    ([{"role": "user", "content": None}], "messages[0].content"),
    ([{"role": "user", "content": []}], "messages[0].content"),
    ([{"role": "user", "content": 3}], "messages[0].content"),
    ([{"role": "tool", "content": "x", "tool_call_id": "1"}], "messages[0].role"),
    ([{"role": "boss", "content": "x"}], "messages[0].role"),
    ([{"role": ["user"], "content": "x"}], "messages[0].role"),
    ([{"role": "user", "content": "x", "mood": 1}], "messages[0]"),
    ([{"role": "user", "content": "x", "name": "a b"}], "messages[0].name"),
    ([{"role": "user", "content": "x", "name": "a\0"}], "messages[0].name"),
    ([{"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}], "messages[0].tool_calls"),
    (
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
        "messages[0].content[0]",
    ),
    ([{"role": "user", "content": [{"type": "text", "text": 1}]}], "messages[0].content[0]"),
    ([{"role": "user", "content": "x"}] * 4097, "messages"),
]


@pytest.mark.parametrize(("messages", "param"), BAD_MESSAGES, ids=lambda value: str(value)[:60])
def test_a_message_that_cannot_be_honoured_is_refused_with_its_place(client, messages, param):
    with pytest.raises(openai.BadRequestError) as refused:
        client.post("/chat/completions", body={"model": "scripted", "messages": messages}, cast_to=object)
    assert refused.value.param == param


def test_a_long_conversation_is_refused_with_the_numbers(client):
    with pytest.raises(openai.BadRequestError) as refused:
        chat(client, [{"role": "user", "content": "x" * 3000}])
    assert refused.value.code == "context_length_exceeded"
    assert refused.value.param == "messages"
    assert "3000" in refused.value.message


def test_a_long_conversation_may_lose_its_oldest_turns_and_says_how_many(client):
    turns = [{"role": "user", "content": "x" * 1500}, {"role": "user", "content": "tokens=1"}]
    reply = chat(client, [turns[0], *turns], extra_body={"context_policy": "drop_oldest"})
    assert reply.usage.prompt_tokens_details.dropped_messages == 1
    assert not hasattr(chat(client).usage.prompt_tokens_details, "dropped_messages")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("words", "status", "code"),
    [
        ("refuse", 400, None),
        ("break", 500, "internal_error"),
        ("fail=0", 500, "engine_error"),
        ("crash=0", 500, "internal_error"),
    ],
)
def test_a_failure_before_the_first_token_has_a_status_of_its_own(client, stream, words, status, code):
    with pytest.raises(openai.APIStatusError) as failed:
        list(chat(client, [{"role": "user", "content": words}], stream=stream))
    assert (failed.value.status_code, failed.value.code) == (status, code)
    assert "secret" not in str(failed.value.response.text)


@pytest.mark.parametrize(("words", "code"), [("fail=2", "engine_error"), ("crash=2", "internal_error")])
def test_a_failure_within_a_stream_is_an_event_and_the_end_is_marked(live, client, words, code):
    messages = [{"role": "user", "content": words}]
    chunks = data_of(raw_stream(live, messages=messages))
    assert [chunk["choices"][0]["delta"].get("content") for chunk in chunks[:-1]] == ["", "a", "b"]
    assert chunks[-1]["error"]["code"] == code
    with pytest.raises(openai.APIError):
        list(chat(client, messages, stream=True))


def test_the_failure_of_one_choice_ends_the_others(live, client):
    with pytest.raises(openai.InternalServerError):
        chat(client, [{"role": "user", "content": "tokens=100 delay=0.05 fail=3"}], n=4)
    assert live.becomes_quiet()


def test_comments_with_the_progress_keep_a_waiting_stream_alive():
    with LiveServer(limits=Limits(keepalive_s=0.05)) as live, live.openai() as client:
        live.source.hold.clear()
        messages = [{"role": "user", "content": "tokens=2 prefill=0.3"}]
        with httpx.stream(
            "POST",
            f"{live.url}/v1/chat/completions",
            json={"model": "scripted", "messages": messages, "stream": True},
        ) as reply:
            lines = reply.iter_lines()
            assert next(lines) == ": loading"
            live.source.hold.set()
            rest = list(lines)
        assert ": prefill 3/20" in rest
        assert rest[-2] == "data: [DONE]"
        texts = [chunk.choices[0].delta.content for chunk in chat(client, messages, stream=True)]
        assert texts == ["", "a", "b", None]


def test_a_load_that_fails_within_a_stream_is_told_in_the_stream():
    source = ScriptedSource()
    source.hold.clear()
    source.errors["scripted"] = RuntimeError("secret")
    with LiveServer(limits=Limits(keepalive_s=0.05), source=source) as live:
        body = {"model": "scripted", "messages": HELLO, "stream": True}
        with httpx.stream("POST", f"{live.url}/v1/chat/completions", json=body) as reply:
            lines = reply.iter_lines()
            assert next(lines) == ": loading"
            source.hold.set()
            rest = "\n".join(lines)
    assert "model_load_failed" in rest
    assert "secret" not in rest
    assert rest.endswith("data: [DONE]\n")


def test_many_streams_at_once_do_not_mix():
    async def talk(client, number):
        body = {
            "model": "scripted",
            "messages": [{"role": "user", "content": f"tokens={number} delay=0.001"}],
        }
        reply = await client.post("/v1/chat/completions", json=body)
        return len(reply.json()["choices"][0]["message"]["content"])

    async def main():
        world = World()
        async with world.client() as client:
            lengths = await asyncio.gather(*(talk(client, number) for number in range(1, 61)))
            assert lengths == list(range(1, 61))
            assert world.quiet
            assert world.source.loads == {"scripted": 1}

    run(main())
