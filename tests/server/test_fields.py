"""The table of request fields: complete, strict, and with a sentence for each refusal."""

import json
import math
import typing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat.completion_create_params import CompletionCreateParamsStreaming as ChatParams
from openai.types.completion_create_params import CompletionCreateParamsStreaming as CompletionParams

from nanollama.server.body import parse_object
from nanollama.server.fields import ChatRequest, CompletionRequest
from nanollama.server.problems import Problem
from nanollama.server.tables import expected
from nanollama.server.unsupported import IGNORED

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
COMPLETION = {"model": "m", "prompt": "hi"}


def read(**fields):
    return ChatRequest.read({**CHAT, **fields})


def refusal(kind=ChatRequest, base=CHAT, **fields):
    with pytest.raises(Problem) as refused:
        kind.read({**base, **fields})
    assert refused.value.status == 400
    return refused.value


@pytest.mark.parametrize(
    ("params", "request_type"), [(ChatParams, ChatRequest), (CompletionParams, CompletionRequest)]
)
def test_every_field_of_openai_is_in_the_table_once(params, request_type):
    supported, refused, ignored = request_type.model_fields, request_type.refused, request_type.ignored
    known = [*supported, *refused, *ignored]
    assert set(typing.get_type_hints(params)) <= set(known)
    assert len(set(known)) == len(known)


@pytest.mark.parametrize("request_type", [ChatRequest, CompletionRequest])
def test_every_supported_field_is_described(request_type):
    for name, field in request_type.model_fields.items():
        assert field.description, name
        assert expected(request_type, name), name


NUMBERS = {
    "temperature": (0, 2, float),
    "top_p": (0, 1, float),
    "min_p": (0, 1, float),
    "repetition_penalty": (0.01, 100, float),
    "presence_penalty": (-2, 2, float),
    "frequency_penalty": (-2, 2, float),
    "top_k": (-1, 2**31 - 1, int),
    "seed": (-(2**63), 2**63 - 1, int),
    "n": (1, 16, int),
    "min_tokens": (0, 2**31 - 1, int),
    "max_tokens": (1, 2**31 - 1, int),
    "max_completion_tokens": (1, 2**31 - 1, int),
}
NEVER = [True, False, "3", "", [], {}, 2**64, 2**70, 10**4000, -(2**70), math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_is_taken_up_to_its_bounds_and_not_beyond(name):
    low, high, kind = NUMBERS[name]
    for good in (low, high, None):
        assert getattr(read(**{name: good}), name) == good
    step = 1 if kind is int else 1e-6
    wrong = [low - step, high + step, *NEVER, *([1.5] if kind is int else [])]
    for bad in wrong:
        problem = refusal(**{name: bad})
        assert problem.param == name
        assert expected(ChatRequest, name) in problem.message
        assert len(problem.message) < 200


@pytest.mark.parametrize("name", ["stream", "logprobs", "ignore_eos", "add_generation_prompt"])
@pytest.mark.parametrize("value", [0, 1, "true", "", [], {}])
def test_true_and_false_are_spelled_out(name, value):
    assert refusal(**{name: value}).param == name


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stop": ""}, "stop"),
        ({"stop": "x" * 257}, "stop"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"1\n": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"logit_bias": {"1": True}}, "logit_bias"),
        ({"logit_bias": {str(n): 1 for n in range(1025)}}, "logit_bias"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream_options": {"include_usage": 1}, "stream": True}, "stream_options"),
        ({"stream_options": {"include_obfuscation": True}, "stream": True}, "stream_options"),
        ({"stream_options": {"speed": 1}, "stream": True}, "stream_options"),
        ({"min_tokens": 6, "max_tokens": 5}, "min_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
        ({"context_policy": "shift"}, "context_policy"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"tools": []}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"__class__": 1}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"a b": 1}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": 3}, "chat_template_kwargs"),
        ({"model": ""}, "model"),
        ({"model": None}, "model"),
        ({"model": 3}, "model"),
        ({"messages": None}, "messages"),
        ({"prompt": "hi"}, "prompt"),
        ({"__proto__": 1}, "__proto__"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_value_that_makes_no_sense_is_refused_by_name(fields, param):
    assert refusal(**fields).param == param


@pytest.mark.parametrize("missing", ["model", "messages"])
def test_what_must_be_there_is_asked_for(missing):
    with pytest.raises(Problem) as refused:
        ChatRequest.read({name: value for name, value in CHAT.items() if name != missing})
    assert (refused.value.param, refused.value.code) == (missing, "missing_required_parameter")


def test_an_unknown_field_is_refused_with_the_name_it_may_have_meant():
    problem = refusal(temprature=1)
    assert problem.code == "unknown_parameter"
    assert problem.message == "Unknown parameter: 'temprature'. Did you mean temperature?"


@pytest.mark.parametrize("name", ChatRequest.refused)
def test_a_field_that_cannot_be_honoured_is_refused_unless_its_value_changes_nothing(name):
    for harmless in (None, *ChatRequest.refused[name].harmless):
        read(**{name: harmless})
    for value in ({"type": "json_object"}, [{"type": "function"}], "high", True):
        if value not in ChatRequest.refused[name].harmless:
            problem = refusal(**{name: value})
            assert (problem.param, problem.code) == (name, "unsupported_parameter")


@pytest.mark.parametrize("name", IGNORED)
def test_a_field_that_changes_nothing_is_let_through(name):
    assert read(**{name: "anything"}) == read()


def test_the_same_limit_under_both_names_is_no_contradiction():
    assert read(max_tokens=5, max_completion_tokens=5).token_limit == 5


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
NAMES = sorted({*ChatRequest.model_fields, *CompletionRequest.model_fields, *ChatRequest.refused, "else"})


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(NAMES), JSON_VALUES, st.sampled_from([ChatRequest, CompletionRequest]))
def test_whatever_a_field_holds_it_is_taken_or_refused_with_a_sentence(name, value, kind):
    body = {**(CHAT if kind is ChatRequest else COMPLETION), name: value}
    problem = None
    try:
        request = kind.read(parse_object(json.dumps(body).encode()))
    except Problem as raised:
        problem = raised
    if problem is None:
        assert request.sampling().keys() <= {*NUMBERS, "logit_bias", "repeat_penalty"}
    else:
        assert problem.status == 400
        assert problem.message.endswith((".", "?"))
        json.dumps(problem.body()).encode("ascii")
