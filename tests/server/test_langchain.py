"""LangChain's OpenAI client works without a special case."""

import pytest


@pytest.fixture(scope="module")
def model(live):
    langchain_openai = pytest.importorskip("langchain_openai")
    return langchain_openai.ChatOpenAI(
        model="scripted",
        base_url=f"{live.url}/v1",
        api_key="any",
        max_retries=0,
        max_tokens=4,
        stream_usage=True,
    )


def test_it_gets_an_answer_with_its_usage(model):
    answer = model.invoke([("system", "Be brief."), ("human", "tokens=3")])
    assert answer.content == "abc"
    assert answer.usage_metadata["output_tokens"] == 4
    assert answer.response_metadata["finish_reason"] == "stop"


def test_it_streams(model):
    chunks = list(model.stream("tokens=9"))
    assert "".join(chunk.content for chunk in chunks) == "abcd"
    assert sum(chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata) == 4


def test_its_conversations_go_on(live, model):
    first = model.invoke("tokens=2")
    model.invoke([("human", "tokens=2"), first, ("human", "and?")])
    assert [turn["role"] for turn in live.last_call["prompt"]] == ["user", "assistant", "user"]
