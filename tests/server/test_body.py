"""Bytes that are not a decent JSON object are refused before anything else looks at them."""

import json

import pytest

from nanollama.server.body import MAX_DEPTH, parse_object
from nanollama.server.problems import Problem


def nested(depth, opening=b"[", closing=b"]"):
    return b'{"a":' + opening * (depth - 1) + closing * (depth - 1) + b"}"


BAD = {
    "empty": (b"", "not valid JSON"),
    "null": (b"null", "not a JSON object"),
    "a list": (b"[]", "not a JSON object"),
    "a text": (b'"x"', "not a JSON object"),
    "NaN": (b'{"a": NaN}', "NaN"),
    "Infinity": (b'{"a": Infinity}', "Infinity"),
    "minus Infinity": (b'{"a": [-Infinity]}', "-Infinity"),
    "1e400": (b'{"a": {"b": 1e400}}', "too large"),
    "5,000 digits": (b'{"a": ' + b"9" * 5000 + b"}", "too many digits"),
    "a lone surrogate": (b'{"a": "\\ud800"}', "surrogate"),
    "a lone surrogate in a name": (b'{"\\udfff": 1}', "surrogate"),
    "a lone surrogate far down": (b'{"a": [{"b": ["x", "\\ud83d"]}]}', "surrogate"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "UTF-8"),
    "a byte order mark": ('\ufeff{"a": 1}'.encode(), "byte order mark"),
    "Latin-1": (b'{"a": "\xe9"}', "UTF-8"),
    "a name twice": (b'{"a": 1, "b": {"c": 1, "c": 2}}', "'c' twice"),
    "many names twice": (
        json.dumps({str(n): 0 for n in range(50_000)})[:-1].encode() + b', "7": 0}',
        "twice",
    ),
    "65 levels": (nested(MAX_DEPTH + 1), "64 levels"),
    "10,000 levels": (nested(10_000), "64 levels"),
    "10,000 levels of objects": (nested(10_000, b'{"a":', b"}").replace(b":}", b":1}"), "64 levels"),
    "half an object": (b'{"a": 1', "line 1, column 8"),
    "two objects": (b"{} {}", "not valid JSON"),
    "a comment": (b"{} // hi", "not valid JSON"),
}


@pytest.mark.parametrize(("body", "says"), BAD.values(), ids=BAD.keys())
def test_a_body_that_is_not_decent_json_is_refused_with_a_sentence(body, says):
    with pytest.raises(Problem) as refused:
        parse_object(body)
    assert refused.value.status == 400
    assert refused.value.code == "invalid_json"
    assert says in refused.value.message
    assert len(refused.value.message) < 150


@pytest.mark.parametrize(
    "value",
    [{}, {"a": "😀\0é\u2028"}, {"a": [1, 2.5, None, True, -0.0]}, {"": {"": 0}}, {"a": 2**70}],
    ids=str,
)
def test_decent_json_comes_through_unchanged(value):
    assert parse_object(json.dumps(value).encode()) == value


def test_the_deepest_that_is_allowed_is_allowed():
    assert parse_object(nested(MAX_DEPTH))


def test_a_large_harmless_body_is_no_problem():
    messages = [{"role": "user", "content": "é" * 1000}] * 4000
    assert len(parse_object(json.dumps({"messages": messages}).encode())["messages"]) == 4000
