"""The requests that Open WebUI makes, recorded, and the shapes that it reads the answers in."""

import json
from datetime import datetime

import httpx
import pytest


@pytest.fixture(scope="module")
def web(live):
    with httpx.Client(base_url=live.url, headers={"authorization": "Bearer x"}, timeout=20) as client:
        yield client


PAYLOAD = {
    "model": "scripted",
    "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "tokens=3"}],
    "stream": True,
}


def test_it_finds_the_version(web):
    version = web.get("/api/version").json()["version"]
    assert tuple(map(int, version.split("."))) >= (0, 6, 4)


def test_it_lists_the_models_by_name_and_model(web):
    for model in web.get("/api/tags").json()["models"]:
        assert model["name"] == model["model"]
        assert {"details", "digest", "size", "modified_at"} <= set(model)
        assert len(model["digest"]) == 64
    assert [model["id"] for model in web.get("/v1/models").json()["data"]] == ["scripted"]


def test_it_shows_what_is_loaded_and_until_when(web):
    web.post("/api/generate", json={"model": "scripted", "keep_alive": "5m"})
    (running,) = web.get("/api/ps").json()["models"]
    assert datetime.fromisoformat(running["expires_at"]).tzinfo is not None
    assert running["size_vram"] == 0


def test_it_streams_a_chat_line_by_line(web):
    payload = {
        **PAYLOAD,
        "options": {"temperature": 0.7, "num_ctx": 1024, "num_predict": 64},
        "keep_alive": "5m",
    }
    with web.stream("POST", "/api/chat", json=payload) as reply:
        assert reply.headers["content-type"] == "application/x-ndjson"
        lines = [json.loads(line) for line in reply.iter_lines()]
    assert "".join(line["message"]["content"] for line in lines) == "abc"
    last = lines[-1]
    assert last["done"]
    assert last["eval_count"] / (last["eval_duration"] / 1e9) > 0
    assert isinstance(last["total_duration"], int)


def test_it_streams_a_chat_in_openai_form(web):
    payload = {**PAYLOAD, "stream_options": {"include_usage": True}}
    with web.stream("POST", "/v1/chat/completions", json=payload) as reply:
        data = [line.removeprefix("data: ") for line in reply.iter_lines() if line.startswith("data: ")]
    assert data[-1] == "[DONE]"
    chunks = [json.loads(each) for each in data[:-1]]
    text = "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"])
    assert text == "abc"
    assert chunks[-1]["usage"]["completion_tokens"] == 4


def test_it_unloads_a_model(web):
    body = {"model": "scripted", "keep_alive": 0, "prompt": ""}
    assert web.post("/api/generate", json=body).json()["done_reason"] == "unload"


def test_it_shows_an_error_as_it_stands(web):
    reply = web.post("/api/chat", json={**PAYLOAD, "model": "gone:latest"})
    assert (reply.status_code, reply.json()) == (404, {"error": "model 'gone:latest' not found"})


def test_copilot_finds_what_it_asks_of_a_model(web):
    shown = web.post("/api/show", json={"name": "scripted", "model": "scripted"}).json()
    assert "completion" in shown["capabilities"]
    assert "model_info" in shown
