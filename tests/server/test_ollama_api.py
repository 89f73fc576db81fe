"""What Ollama's requests mean here: options, windows, keep-alive, what is dropped and what is refused."""

import json
from datetime import UTC, datetime

import pytest

from nanollama.server.jobs import Keep
from nanollama.server.ollama.durations import expiry_text, moment_text, read_keep
from nanollama.server.ollama.options import (
    IGNORED_OPTIONS,
    OLLAMA_DEFAULTS,
    REFUSED_OPTIONS,
    SUPPORTED_OPTIONS,
    read_options,
)
from nanollama.server.problems import OLLAMA_BUSY, Problem
from nanollama.server.settings import ServerSettings
from nanollama.store.parameters import DEPRECATED, PARAMETERS
from server.worlds import World, run, soon


def post(path, body, world=None, **headers):
    """Status and JSON of one request, or all lines of a stream; and the world it was made in."""
    world = world or World()

    async def main():
        async with world.client(**headers) as client:
            reply = await client.post(path, json=body)
            is_stream = reply.headers["content-type"] == "application/x-ndjson"
            told = [json.loads(line) for line in reply.text.splitlines()] if is_stream else reply.json()
            return reply.status_code, told, world

    return run(main())


def chat(words="tokens=2", **fields):
    return {"model": "scripted", "messages": [{"role": "user", "content": words}], "stream": False, **fields}


def test_options_reach_the_model_under_our_names():
    options = {
        "temperature": 0.5,
        "top_k": 7,
        "top_p": 0.5,
        "min_p": 0.1,
        "repeat_penalty": 1.3,
        "repeat_last_n": 3,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.3,
        "seed": 42,
        "num_predict": 1,
        "stop": ["x"],
        "num_ctx": 512,
    }
    _, _, world = post("/api/chat", chat(options=options))
    call = world.last_call
    wanted = {"max_tokens": 1, "stop": ("x",), "n_ctx": 512, "seed": 42, "top_k": 7, "min_p": 0.1}
    assert {name: call[name] for name in wanted} == wanted
    assert call["context_policy"] == "drop_oldest"


def test_without_options_the_models_own_settings_come_before_ollamas_defaults():
    _, _, world = post("/api/chat", chat())
    call = world.last_call
    assert "temperature" not in call  # the model has its own, 0.3
    assert (call["top_k"], call["top_p"], call["repeat_penalty"]) == (40, 0.9, 1.0)
    assert OLLAMA_DEFAULTS == {
        "temperature": 0.8,
        "top_k": 40,
        "top_p": 0.9,
        "min_p": 0.0,
        "repeat_last_n": 64,
        "repeat_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
    }


def test_every_option_of_ollama_is_in_the_table_once():
    known = [*SUPPORTED_OPTIONS, *IGNORED_OPTIONS, *REFUSED_OPTIONS]
    assert {*PARAMETERS, *DEPRECATED} <= set(known)
    assert len(known) == len(set(known))


def test_options_that_mean_nothing_here_are_let_through():
    values = dict.fromkeys(IGNORED_OPTIONS, 1) | {"mirostat": 0, "tfs_z": 1.0, "typical_p": 1, "top_k": None}
    assert read_options(values).sampling == {}
    assert read_options({"num_predict": -1, "seed": -1}).max_tokens is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temprature": 1}, "Did you mean temperature?"),
        ({"mirostat": 2}, "mirostat can't be honoured"),
        ({"typical_p": 0.5}, "typical_p can't be honoured"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"num_ctx": 1}, "num_ctx is 1"),
        ({"stop": [""]}, "stop is ''"),
        ({"stop": ["x"] * 17}, "stop is"),
        ({str(n): n for n in range(65)}, "65 entries"),
        ([], "a list of 0 entries"),
        ("x", "'x'"),
    ],
)
def test_a_wrong_option_is_refused_by_name(options, message):
    status, told, _ = post("/api/chat", chat(options=options))
    assert status == 400
    assert message in told["error"]


def test_a_narrower_window_is_a_part_of_the_one_there_is_and_a_wider_one_is_loaded():
    async def main():
        world = World()
        async with world.client() as client:
            for n_ctx in (100, None, 3000, 2500):
                options = {} if n_ctx is None else {"num_ctx": n_ctx}
                reply = await client.post("/api/chat", json=chat(options=options))
                assert reply.status_code == 200
                running = (await client.get("/api/ps")).json()["models"]
                yield n_ctx, world.source.loads["scripted"], [each["context_length"] for each in running]
            refused = await client.post("/api/chat", json=chat(options={"num_ctx": 100_000}))
            assert refused.status_code == 400
            assert "4000" in refused.json()["error"]
            assert not world.llm.closed, "a request that is refused costs nobody the model"
            await client.post("/api/chat", json=chat(keep_alive=0))

    async def collect():
        return [each async for each in main()]

    assert run(collect()) == [(100, 1, [2000]), (None, 1, [2000]), (3000, 2, [3000]), (2500, 2, [3000])]


@pytest.mark.parametrize(
    ("value", "keep"),
    [
        (0, Keep(0.0)),
        (90, Keep(90.0)),
        (1.5, Keep(1.5)),
        (-1, Keep(None)),
        ("5m", Keep(300.0)),
        ("1h30m", Keep(5400.0)),
        ("300ms", Keep(0.3)),
        ("1.5h", Keep(5400.0)),
        ("-1", Keep(None)),
        ("-1m", Keep(None)),
        ("0", Keep(0.0)),
        ("24h", Keep(86400.0)),
        (10**15, Keep(None)),
        ("1000000h", Keep(None)),
    ],
)
def test_keep_alive_is_read_as_ollama_writes_it(value, keep):
    assert read_keep(value) == keep


@pytest.mark.parametrize("value", ["", "5 m", "m", "5x", "1h-5m", "٣s", "1" * 70, True, [], {}], ids=repr)
def test_what_is_no_time_is_refused(value):
    with pytest.raises(ValueError, match=r"not a|neither"):
        read_keep(value)
    status, told, _ = post("/api/chat", chat(keep_alive=value))
    assert status == 400
    assert "keep_alive" in told["error"]


def test_times_can_be_read_by_python():
    assert datetime.fromisoformat(expiry_text(None)).year > 2300
    assert datetime.fromisoformat(expiry_text(60.0)) > datetime.now(UTC)
    for strange in (-1e30, 0.0, 1e30):
        datetime.fromisoformat(moment_text(strange))


def test_a_model_goes_when_its_time_is_over_and_not_before():
    async def main():
        world = World(keep_alive_s=3600.0)
        async with world.client() as client:
            await client.post("/api/chat", json=chat(keep_alive=-1))
            forever = (await client.get("/api/ps")).json()["models"][0]["expires_at"]
            await client.post("/v1/chat/completions", json=chat())
            same = (await client.get("/api/ps")).json()["models"][0]["expires_at"]
            await client.post("/api/chat", json=chat(keep_alive=0.01))
            for _ in range(500):
                if not (await client.get("/api/ps")).json()["models"]:
                    return forever, same, world.llm.closed
        raise AssertionError("it never went")

    forever, same, closed = run(main())
    assert forever[:4] == same[:4] > "2300"
    assert closed


def test_an_unloaded_model_finishes_its_answers():
    async def main():
        world = World()
        async with world.client() as client:
            import asyncio

            task = asyncio.create_task(client.post("/api/chat", json=chat("tokens=20 delay=0.02")))
            while not world.source.models or not world.llm.engine.open:
                await asyncio.sleep(0.005)
            unloaded = await client.post("/api/generate", json={"model": "scripted", "keep_alive": 0})
            assert unloaded.json()["done_reason"] == "unload"
            assert not world.llm.closed
            reply = await task
            assert len(reply.json()["message"]["content"]) == 20
            assert await soon(lambda: world.llm.closed)

    run(main())


def test_what_is_dropped_from_a_conversation_is_reported():
    turns = [{"role": "user", "content": "x" * 900}, {"role": "assistant", "content": "y" * 900}]
    body = chat(messages=[*turns, {"role": "user", "content": "tokens=1 " + "z" * 300}])
    status, told, _ = post("/api/chat", body)
    assert status == 200
    assert told["dropped_messages"] == 1
    assert told["dropped_tokens"] > 0
    status, told, _ = post("/api/chat", {**body, "truncate": False})
    assert status == 400
    assert "2000" in told["error"]


def test_raw_continues_the_prompt_as_it_stands():
    _, told, world = post(
        "/api/generate", {"model": "scripted", "prompt": "tokens=1", "raw": True, "stream": False}
    )
    assert world.last_call["prompt"] == "tokens=1"
    assert world.last_call["parse_special"]
    assert "context" not in told
    status, told, _ = post("/api/generate", {"model": "scripted", "prompt": "a", "raw": True, "system": "b"})
    assert (status, told) == (400, {"error": "raw mode does not support template, system, or context"})


def test_think_false_reaches_the_template():
    _, _, world = post("/api/chat", chat(think=False))
    assert world.last_call["template_kwargs"] == {"enable_thinking": False}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "model is required"),
        ({"model": None}, "model is required"),
        ({"model": ""}, "model is required"),
        ({"model": 3}, "model is 3; expected a text."),
        (chat(messages="hi"), "messages is not a list of messages."),
        (chat(messages=[{"role": "tool", "content": "x"}]), "tool calls are not supported"),
        (chat(messages=[{"role": "boss", "content": "x"}]), "role is not one of"),
        (chat(messages=[{"role": "user", "content": 1}]), "content is not a text"),
        (chat(messages=[{"role": "user", "content": "x", "images": ["aGk="]}]), "images are not supported"),
        (chat(messages=[{"role": "user", "content": "x", "mood": "good"}]), "Unknown field 'mood'"),
        (chat(stram=True), "Did you mean stream?"),
        (chat(shift=True), "shift can't be honoured"),
        (chat(top_logprobs=2), "only allowed together with logprobs"),
        (chat(top_logprobs=21, logprobs=True), "top_logprobs is 21"),
        (chat(format={"type": "object"}), "format can't be honoured"),
        (chat(think="high"), "does not support thinking"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(body, message):
    status, told, _ = post("/api/chat", body)
    assert status == 400
    assert set(told) == {"error"}
    assert message in told["error"]


def test_empty_values_that_clients_send_along_change_nothing():
    body = {"model": "scripted", "prompt": "tokens=1", "stream": False}
    extra = dict.fromkeys(("suffix", "system", "template", "format"), "") | {"images": [], "options": {}}
    extra |= dict.fromkeys(("context", "keep_alive"), None) | dict.fromkeys(("raw", "think"), False)
    status, told, _ = post("/api/generate", {**body, **extra})
    assert (status, told["response"]) == (200, "a")


def test_a_full_queue_is_told_in_ollamas_words():
    async def main():
        world = World(ServerSettings(port=0, max_seqs=1, max_queue=0))
        ticket = world.services.admission.enter()
        async with world.client() as client:
            reply = await client.post("/api/chat", json=chat())
            ticket.give_back()
            return reply

    reply = run(main())
    assert (reply.status_code, reply.json()) == (503, {"error": OLLAMA_BUSY})
    assert int(reply.headers["retry-after"]) >= 1


ROUTES = [
    *(("POST", f"/api/{name}") for name in ("chat", "generate", "show", "pull", "create", "copy", "embed")),
    *(("GET", f"/api/{name}") for name in ("tags", "ps", "version")),
    *(("DELETE", "/api/delete"), ("GET", "/"), ("POST", "/api/push"), ("POST", "/api/embeddings")),
    *(("HEAD", "/api/blobs/sha256:" + "0" * 64), ("POST", "/api/blobs/sha256:" + "0" * 64)),
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_with_keys_set_no_route_of_ollama_is_open(method, path):
    async def main():
        world = World(ServerSettings(port=0, api_keys=("secret",)))
        async with world.client() as client:
            closed = await client.request(method, path, json={})
            elsewhere = await client.request(method, path, json={}, headers={"host": "evil.example"})
            page = await client.request(method, path, json={}, headers={"origin": "https://evil.example"})
            opened = await client.request(method, path, json={}, headers={"authorization": "Bearer secret"})
            return closed, elsewhere, page, opened

    closed, elsewhere, page, opened = run(main())
    assert (closed.status_code, elsewhere.status_code, page.status_code) == (401, 403, 403)
    assert opened.status_code not in (401, 403)
    if method != "HEAD":
        assert set(closed.json()) == {"error"}
        assert isinstance(closed.json()["error"], str)


def test_a_problem_of_v1_keeps_its_form():
    status, told, _ = post("/v1/chat/completions", {"model": "none", "messages": []})
    assert status == 400
    assert set(told["error"]) == {"message", "type", "param", "code"}
    assert isinstance(Problem(400, "x").body()["error"], dict)
