"""Requests made up from the OpenAPI page: whatever they hold, the server never fails."""

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode


@pytest.fixture(scope="module")
def schema(live):
    found = schemathesis.openapi.from_dict(httpx.get(f"{live.url}/openapi.json").json())
    found.config.update(base_url=live.url)
    return found


POSTS = [
    *(("/v1/chat/completions", "POST"), ("/v1/completions", "POST"), ("/tokenize", "POST")),
    ("/detokenize", "POST"),
]
GETS = [("/v1/models/{name}", "GET"), ("/v1/models", "GET"), ("/version", "GET"), ("/metrics", "GET")]


@pytest.mark.parametrize(
    ("mode", "path", "method"),
    [
        *((GenerationMode.POSITIVE, *operation) for operation in [*POSTS, *GETS]),
        *((GenerationMode.NEGATIVE, *operation) for operation in POSTS),
    ],
)
def test_made_up_requests_get_an_answer_or_a_refusal_but_never_a_failure(schema, mode, path, method):
    seen = set()

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(st.data())
    def check(data):
        case = data.draw(schema[path][method].as_strategy(generation_mode=mode))
        if isinstance(case.body, dict) and "model" in case.body:
            case.body["model"] = "scripted"  # or hardly any request would come further than its name
        reply = case.call()
        seen.add(reply.status_code)
        assert reply.status_code < 500
        if reply.status_code >= 400:
            assert set(reply.json()["error"]) == {"message", "type", "param", "code"}

    check()
    assert 200 in seen or mode == GenerationMode.NEGATIVE or "{" in path
