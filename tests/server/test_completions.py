"""Completions, tokens and models through OpenAI's own client."""

import httpx
import openai
import pytest
from openai.types import Completion


def complete(client, prompt="Say tokens=3", **options):
    return client.completions.create(model="scripted", prompt=prompt, **options)


def test_a_text_is_continued(client):
    reply = complete(client)
    assert (reply.choices[0].text, reply.choices[0].finish_reason) == ("abc", "stop")
    assert reply.object == "text_completion"
    assert reply.id.startswith("cmpl-")


def test_sixteen_tokens_are_the_default_as_at_openai(live, client):
    assert len(complete(client, "tokens=100").choices[0].text) == 16
    assert live.last_call["context_policy"] == "error"


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("one", ["one"]),
        (["one", "two"], ["one", "two"]),
        ([104, 105], [[104, 105]]),
        ([[104, 105], [106]], [[104, 105], [106]]),
    ],
    ids=str,
)
def test_prompts_come_as_text_or_tokens_one_or_many(live, client, prompt, wanted):
    before = len(live.llm.calls) if live.source.models else 0
    reply = complete(client, prompt, n=2, max_tokens=1)
    assert [call["prompt"] for call in live.llm.calls[before:]] == wanted
    assert [choice.index for choice in reply.choices] == list(range(2 * len(wanted)))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"echo": True},
        {"logprobs": 2},
        {"echo": True, "logprobs": 1},
        {"echo": True, "logprobs": 0, "max_tokens": 0},
        {"n": 2, "echo": True},
    ],
    ids=str,
)
def test_streamed_and_whole_replies_are_the_same_and_have_the_published_shape(live, client, options):
    whole = complete(client, ["hi tokens=2", "ho"], **options)
    texts, logprobs = {}, {}
    for chunk in complete(client, ["hi tokens=2", "ho"], stream=True, **options):
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
            if choice.logprobs:
                kept = logprobs.setdefault(choice.index, {})
                for name, values in choice.logprobs.to_dict().items():
                    kept[name] = kept.get(name, []) + values
    for choice in whole.choices:
        assert texts[choice.index] == choice.text
        assert logprobs.get(choice.index) == (choice.logprobs and choice.logprobs.to_dict())
    raw = post(live, "/v1/completions", prompt="hi", **options).json()
    if {"echo", "logprobs"} <= set(options):  # OpenAI's own types don't know that the first token has none
        for values in (raw["choices"][0]["logprobs"][name] for name in ("token_logprobs", "top_logprobs")):
            assert values.pop(0) is None
    assert Completion.model_validate(raw).model_dump(exclude_unset=True) == raw


def test_echo_with_logprobs_scores_the_prompt_but_for_its_first_token(client):
    choice = complete(client, "hi", echo=True, logprobs=1, max_tokens=0).choices[0]
    assert (choice.text, choice.finish_reason) == ("hi", "length")
    assert choice.logprobs.tokens == ["h", "i"]
    assert choice.logprobs.token_logprobs == [None, -0.25]
    assert choice.logprobs.top_logprobs == [None, {"a": -0.5}]
    assert choice.logprobs.text_offset == [0, 1]


def test_offsets_go_on_from_the_prompt_to_the_answer(client):
    logprobs = complete(client, "hi tokens=2", echo=True, logprobs=0).choices[0].logprobs
    assert logprobs.text_offset == list(range(13))
    assert logprobs.top_logprobs[1] == {}


def test_no_generated_token_is_counted_where_none_was_asked_for(client):
    reply = complete(client, "hi", echo=True, max_tokens=0)
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (2, 0)


def test_control_tokens_in_a_prompt_are_the_business_of_its_author(live, client):
    complete(client)
    assert live.last_call["parse_special"] is True


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": [1.0]}, "prompt"),
        ({"prompt": ["a"] * 65}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": "x", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "x", "logprobs": 21}, "logprobs"),
        ({"prompt": "x", "logprobs": True}, "logprobs"),
        ({"prompt": "x", "suffix": "y"}, "suffix"),
        ({"prompt": "x", "best_of": 2}, "best_of"),
        ({"prompt": "x", "best_of": True}, "best_of"),
        ({"prompt": "x", "context_policy": "drop_oldest"}, "context_policy"),
        ({"prompt": "x", "messages": []}, "messages"),
        ({}, "prompt"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_what_cannot_be_honoured_is_refused_by_name(client, options, param):
    with pytest.raises(openai.BadRequestError) as refused:
        client.post("/completions", body={"model": "scripted", **options}, cast_to=object)
    assert refused.value.param == param


def test_a_prompt_that_does_not_fit_is_refused_and_names_the_prompt(live, client):
    with pytest.raises(openai.BadRequestError) as refused:
        complete(client, ["short", "x" * 3000])
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "prompt")
    assert live.becomes_quiet(), "the first prompt's answer was aborted"


def test_models_are_listed_and_described(client):
    assert [model.id for model in client.models.list()] == ["scripted"]
    model = client.models.retrieve("scripted")
    assert (model.id, model.object, model.created) == ("scripted", "model", 1_700_000_000)


@pytest.mark.parametrize("name", ["gpt-4o", "../etc/passwd", "/etc/passwd", "a\0b", "x" * 300, "ünï"])
def test_an_unknown_model_is_not_found(client, name):
    with pytest.raises(openai.NotFoundError) as missing:
        complete(client.with_options(), extra_body={"model": name})
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")


def post(live, path, **body):
    return httpx.post(live.url + path, json={"model": "scripted", **body})


def test_text_becomes_tokens_and_text_again(live):
    tokens = post(live, "/tokenize", prompt="naïve").json()
    assert tokens == {"count": 6, "max_model_len": 2000, "tokens": [*"naïve".encode()]}
    assert post(live, "/detokenize", tokens=tokens["tokens"]).json() == {"prompt": "naïve"}
    texts = post(live, "/tokenize", prompt="hi", return_token_strs=True).json()["token_strs"]
    assert texts == ["h", "i"]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": 3}, "prompt"),
        ("/tokenize", {"prompt": "x", "add_special_tokens": 1}, "add_special_tokens"),
        ("/tokenize", {"prompt": "x", "speed": 1}, "speed"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": [2**70]}, "tokens"),
        ("/detokenize", {"tokens": "x"}, "tokens"),
        ("/detokenize", {"tokens": [257]}, None),
    ],
    ids=str,
)
def test_tokens_that_make_no_sense_are_refused(live, path, body, param):
    reply = post(live, path, **body)
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == param
