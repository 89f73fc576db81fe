"""Libraries that speak Ollama's API hold a conversation; each is skipped where it is absent."""

import asyncio
import gc
import warnings

import pytest

pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(autouse=True)
def _their_sockets_are_theirs():
    """Some of these libraries never close their connections."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture
def langchain(live):
    library = pytest.importorskip("langchain_ollama")
    return library.ChatOllama(
        model="scripted", base_url=live.url, num_predict=4, validate_model_on_init=True, keep_alive="5m"
    )


def test_langchain_gets_an_answer_with_its_usage(langchain):
    answer = langchain.invoke([("system", "Be brief."), ("human", "tokens=3")])
    assert answer.content == "abc"
    assert answer.usage_metadata["output_tokens"] == 4
    assert answer.response_metadata["done_reason"] == "stop"


def test_langchain_streams_and_its_conversations_go_on(live, langchain):
    assert "".join(chunk.content for chunk in langchain.stream("tokens=9")) == "abcd"
    first = langchain.invoke("tokens=2")
    langchain.invoke([("human", "tokens=2"), first, ("human", "and?")])
    assert [turn["role"] for turn in live.last_call["prompt"]] == ["user", "assistant", "user"]


def test_langchain_works_asynchronously(langchain):
    async def main():
        return (await langchain.ainvoke("tokens=2")).content

    assert asyncio.run(main()) == "ab"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("provider", ["ollama_chat", "ollama"])
def test_litellm_holds_a_conversation(live, provider, monkeypatch):
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    litellm = pytest.importorskip("litellm")
    litellm.suppress_debug_info = True
    litellm.telemetry = False
    options = {"model": f"{provider}/scripted", "api_base": live.url, "num_retries": 0}
    messages = [{"role": "user", "content": "tokens=3"}]
    reply = litellm.completion(messages=messages, max_tokens=3, temperature=0.1, **options)
    assert reply.choices[0].message.content.startswith("abc")
    stream = litellm.completion(messages=messages, stream=True, **options)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream).startswith("abc")
    answered = [*messages, {"role": "assistant", "content": "abc"}, {"role": "user", "content": "tokens=1"}]
    assert litellm.completion(messages=answered, **options).choices[0].message.content


@pytest.mark.filterwarnings("ignore")
def test_llm_ollama_holds_a_conversation(live, monkeypatch, tmp_path):
    monkeypatch.setenv("OLLAMA_HOST", live.url)
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    pytest.importorskip("llm")
    plugin = pytest.importorskip("llm_ollama")
    model = plugin.Ollama("scripted", supports_tools=False)
    conversation = model.conversation()
    first = conversation.prompt("tokens=3", temperature=0.2, num_ctx=512)
    assert first.text() == "abc"
    assert conversation.prompt("tokens=2", stream=False).text() == "ab"
    assert [turn["role"] for turn in live.last_call["prompt"]] == ["user", "assistant", "user"]
    assert first.usage().output == 4
