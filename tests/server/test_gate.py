"""Who is let in: Host, Origin, keys, the queue, sizes, and the end of the server."""

import asyncio
import json

import httpx
import pytest

from nanollama.errors import UsageError
from nanollama.server.admission import Admission
from nanollama.server.app import build_routes
from nanollama.server.auth import PUBLIC_PATHS, origin_allowed
from nanollama.server.problems import Problem, speaks_ollama
from nanollama.server.settings import Limits, ServerSettings
from nanollama.store.plans import HUB_ONLY
from server.worlds import World, run

BODY = {"model": "scripted", "messages": [{"role": "user", "content": "hi"}]}
CHAT = "/v1/chat/completions"


def ask(world, method="GET", path="/version", headers=None, **options):
    async def main():
        async with world.client() as client:
            return await client.request(method, path, headers=headers, **options)

    return run(main())


def code(reply):
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return reply.status_code, error["code"]


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:8000", "LOCALHOST", "127.0.0.1:1", "[::1]:8000", "127.8.8.8"]
)
def test_a_host_of_this_machine_is_let_in(host):
    assert ask(World(), headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "localhost.evil.example", "192.168.1.5", "a/?x=", "a b", "", "localhost:x"),
        *("localhost@evil", "evil@localhost", "localhost/", "localhost#", "local\\host", "localhost:99999"),
    ],
)
def test_any_other_host_is_turned_away(host):
    assert code(ask(World(), headers={"host": host})) == (403, "host_not_allowed")


def test_two_hosts_or_none_are_turned_away():
    for headers in ([(b"host", b"localhost"), (b"host", b"localhost")], []):
        statuses = []

        async def send(message, statuses=statuses):
            statuses.append(message.get("status"))

        async def receive():
            await asyncio.sleep(10)

        scope = {"type": "http", "method": "GET", "path": "/health", "headers": headers}
        run(World().app(scope, receive, send))
        assert statuses[0] == 403


@pytest.mark.parametrize(
    ("host", "asked", "status"),
    [
        ("0.0.0.0", "192.168.1.5:8000", 200),
        ("0.0.0.0", "localhost", 200),
        ("0.0.0.0", "box.local", 403),
        ("0.0.0.0", "allowed.example:80", 200),
        ("box.local", "box.local:8000", 200),
        ("::", "[fe80::1]:8000", 200),
    ],
)
def test_a_server_open_to_others_takes_addresses_and_its_own_names(host, asked, status):
    settings = ServerSettings(host=host, insecure=True, hosts=("allowed.example",))
    assert ask(World(settings), headers={"host": asked}).status_code == status


@pytest.mark.parametrize("origin", ["http://localhost:3000", "https://127.0.0.1", "http://[::1]:1"])
def test_pages_of_this_machine_may_call(origin):
    reply = ask(World(), headers={"origin": origin})
    assert reply.status_code == 200
    assert reply.headers["access-control-allow-origin"] == origin
    assert "origin" in reply.headers["vary"].lower()
    assert "access-control-allow-credentials" not in reply.headers


@pytest.mark.parametrize(
    "origin",
    [
        *(
            "https://evil.example",
            "http://localhost.evil.example",
            "null",
            "file://",
            "chrome-extension://abc",
        ),
        *("http://localhost@evil.example", "ftp://localhost", "http://localhost/x", "", "http://192.168.1.5"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_pages_from_elsewhere_may_not(origin, method):
    reply = ask(World(), method, CHAT, headers={"origin": origin, "content-type": "text/plain"})
    assert code(reply) == (403, "origin_not_allowed")
    assert "access-control-allow-origin" not in reply.headers


def test_an_origin_can_be_allowed_by_name():
    world = World(ServerSettings(origins=("https://chat.example",)))
    assert ask(world, headers={"origin": "https://chat.example"}).status_code == 200


def test_a_browser_that_asks_first_is_told_what_it_may_send():
    headers = {
        "origin": "http://localhost:3000",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,x-stainless-lang",
    }
    reply = ask(World(ServerSettings(api_keys=("k",))), "OPTIONS", CHAT, headers=headers)
    assert reply.status_code == 204
    assert reply.headers["access-control-allow-headers"] == "authorization,x-stainless-lang"
    assert "POST" in reply.headers["access-control-allow-methods"]
    headers["access-control-request-headers"] = "x\x01"
    reply = ask(World(), "OPTIONS", CHAT, headers=headers)
    assert reply.headers["access-control-allow-headers"] == "authorization, content-type"


KEYED = ServerSettings(api_keys=("sk-one", "sk-two"))


def routes():
    """Every route and method that the application has."""
    world = World()
    application = build_routes(world.services, world.store, HUB_ONLY)
    fill = {"{name:path}": "scripted", "{digest:path}": "sha256:" + "0" * 64}
    found = []
    for path, method in all_routes(application.routes):
        for name, value in fill.items():
            path = path.replace(name, value)
        found.append((method, path))
    return found


def all_routes(tree):
    """Path and method of each route, also of routers within routers."""
    for route in tree:
        if hasattr(route, "methods"):
            yield from ((route.path, method) for method in sorted(route.methods))
        else:
            yield from all_routes(route.original_router.routes)


def test_all_routes_are_known():
    assert {path for _, path in routes()} == {
        *("/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/models/scripted"),
        *("/tokenize", "/detokenize", "/health", "/version", "/metrics", "/", "/openapi.json"),
        *("/api/chat", "/api/generate", "/api/tags", "/api/ps", "/api/show", "/api/version"),
        *("/api/pull", "/api/create", "/api/copy", "/api/delete", "/api/blobs/sha256:" + "0" * 64),
        *("/api/embed", "/api/embeddings", "/api/push"),
    }
    assert frozenset({"/health"}) == PUBLIC_PATHS


@pytest.mark.parametrize(("method", "path"), [*routes(), ("GET", "/none")])
@pytest.mark.parametrize(
    "key",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer sk-on",
        "Bearer sk-onee",
        "Basic sk-one",
        "sk-one",
        "Bearer \xff",
    ],
)
def test_without_the_right_key_nothing_but_health_is_answered(method, path, key):
    headers = {} if key is None else {"authorization": key.encode("latin-1")}
    reply = ask(World(KEYED), method, path, headers=headers, content=b"{}" if method == "POST" else None)
    if path in PUBLIC_PATHS:
        assert reply.status_code == 200
    else:
        assert reply.status_code == 401
        if method != "HEAD" and not speaks_ollama(path):
            assert code(reply) == (401, "invalid_api_key")
        assert reply.headers["www-authenticate"] == "Bearer"
        assert "sk-" not in reply.text


@pytest.mark.parametrize("key", ["sk-one", "sk-two"])
def test_each_of_the_keys_opens_and_has_a_cache_of_its_own(key):
    world = World(KEYED)
    assert ask(world, "POST", CHAT, {"authorization": f"bearer {key}"}, json=BODY).status_code == 200
    assert len(world.last_call["salt"]) == 16
    other = World(KEYED)
    ask(other, "POST", CHAT, {"authorization": "Bearer sk-one"}, json=BODY)
    assert (other.last_call["salt"] == world.last_call["salt"]) == (key == "sk-one")


@pytest.mark.parametrize("key", [None, "Bearer anything", "Bearer ", "nonsense"])
def test_without_keys_set_any_token_is_accepted(key):
    world = World()
    assert ask(world, "POST", CHAT, {"authorization": key} if key else {}, json=BODY).status_code == 200
    assert world.last_call["salt"] == ""


@pytest.mark.parametrize(
    "path", ["//v1/models", "/v1/../v1/models", "/v1/models/", "/V1/models", "/v1%2fmodels"]
)
def test_another_spelling_of_a_path_needs_the_key_as_well(path):
    assert ask(World(KEYED), path=path).status_code == 401


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/health", 405),
        ("GET", "/v1/nothing", 404),
        ("GET", CHAT, 405),
        ("DELETE", "/v1/models/scripted", 405),
        ("FOO", "/health", 405),
        ("TRACE", "/health", 405),
        ("OPTIONS", "/health", 405),
        ("GET", "/docs", 404),
        ("POST", "/v1/models", 405),
    ],
)
def test_what_does_not_exist_is_said_in_the_same_form(method, path, status):
    reply = ask(World(), method, path)
    assert code(reply)[0] == status
    assert f"nothing at {method} {path};" in reply.text


def test_a_wide_address_needs_a_key_or_the_word():
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org"):
        with pytest.raises(UsageError, match="--api-key"):
            ServerSettings(host=host)
        ServerSettings(host=host, api_keys=("k",))
        ServerSettings(host=host, insecure=True)
    for host in ("127.0.0.1", "localhost", "::1", "[::1]", "127.0.0.2"):
        ServerSettings(host=host)


@pytest.mark.parametrize("key", ["", "a b\n", "clé"])
def test_a_key_that_no_header_can_hold_is_refused(key):
    with pytest.raises(UsageError, match="API key"):
        ServerSettings(api_keys=(key,))


SMALL = Limits(body_bytes=1 << 20)


@pytest.mark.parametrize("extra", [-1, 0, 1])
@pytest.mark.parametrize("declared", [True, False])
def test_a_body_is_taken_up_to_its_limit(extra, declared):
    start = json.dumps({**BODY, "user": ""})[:-2].encode()
    body = start + b"x" * (SMALL.body_bytes + extra - len(start) - 2) + b'"}'
    assert len(body) == SMALL.body_bytes + extra

    async def pieces():
        for at in range(0, len(body), 65536):
            yield body[at : at + 65536]

    world = World(limits=SMALL)
    reply = ask(world, "POST", CHAT, content=body if declared else pieces())
    assert reply.status_code == (413 if extra > 0 else 200)
    assert world.quiet


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-encoding": "gzip"}, 415),
        ({"content-encoding": "identity"}, 200),
        ({"content-length": "9" * 30}, 413),
        ({"content-length": "-1"}, 413),
        ({"content-type": "text/plain"}, 200),
    ],
    ids=str,
)
def test_the_headers_of_a_body_are_looked_at_first(headers, status):
    assert ask(World(), "POST", CHAT, headers, content=json.dumps(BODY)).status_code == status


def test_a_full_queue_is_said_before_the_body_is_read():
    async def main():
        world = World(ServerSettings(max_seqs=1, max_queue=2))
        async with world.client() as client:
            hang = {**BODY, "messages": [{"role": "user", "content": "hang=1"}]}
            waiting = [asyncio.create_task(client.post(CHAT, json=hang)) for _ in range(3)]
            while world.services.admission.held < 3:
                await asyncio.sleep(0.01)
            reply = await client.post(CHAT, content=b"not even json")
            assert code(reply) == (429, "queue_full")
            assert 1 <= int(reply.headers["retry-after"]) <= 60
            assert (await client.get("/health")).status_code == 200
            assert (await client.get("/v1/models")).status_code == 200
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            await world.settled()
            assert (await client.post(CHAT, json=BODY)).status_code == 200

    run(main())


def test_every_answer_takes_a_place_in_the_queue():
    world = World(ServerSettings(max_seqs=1, max_queue=3))
    body = {"model": "scripted", "prompt": ["a", "b", "c"], "n": 2}
    assert code(ask(world, "POST", "/v1/completions", json=body)) == (429, "queue_full")
    assert world.quiet
    assert ask(World(world.settings), "POST", "/v1/completions", json={**body, "n": 1}).status_code == 200


def test_the_time_to_wait_grows_with_the_queue_within_bounds():
    admission = Admission(1, 1000)
    tickets = [admission.enter() for _ in range(200)]
    assert 1 <= admission.retry_after() <= 60
    for ticket in tickets:
        ticket.give_back()
        ticket.give_back()
    assert admission.held == 0
    assert admission.retry_after() == 1


def test_a_draining_server_refuses_work_and_says_so():
    async def main():
        world = World()
        async with world.client() as client:
            world.services.admission.drain(30)
            reply = await client.post(CHAT, json=BODY)
            assert code(reply) == (503, "server_shutdown")
            assert int(reply.headers["retry-after"]) > 0
            assert reply.headers["connection"] == "close"
            health = await client.get("/health")
            assert (health.status_code, health.json()) == (503, {"status": "draining"})
            assert (await client.get("/metrics")).status_code == 200
            assert world.services.admission.drained()

    run(main())


def test_ids_are_the_servers_own():
    world = World()
    replies = [ask(World(), headers={"x-request-id": "../../mine\x1b"}) for _ in range(3)]
    ids = {reply.headers["x-request-id"] for reply in replies}
    assert len(ids) == 3
    assert all(each.startswith("req_") for each in ids)
    reply = ask(world, "POST", CHAT, {"x-request-id": "mine"}, json=BODY)
    assert reply.json()["id"].removeprefix("chatcmpl-") == reply.headers["x-request-id"].removeprefix("req_")


def test_a_problem_is_an_error_in_openais_form():
    problem = Problem(429, "Too much.", "queue_full", "n", 3)
    assert problem.body() == {
        "error": {"message": "Too much.", "type": "rate_limit_error", "param": "n", "code": "queue_full"}
    }
    assert problem.headers() == {"retry-after": "3"}


def test_an_unexpected_failure_is_logged_once_and_told_to_nobody(caplog):
    body = {**BODY, "messages": [{"role": "user", "content": "break"}]}
    reply = ask(World(), "POST", CHAT, json=body)
    assert code(reply) == (500, "internal_error")
    assert "secret" not in reply.text
    assert len(caplog.records) == 1
    assert reply.headers["x-request-id"] in caplog.text


def test_web_sockets_are_not_answered():
    async def nothing(_):
        raise AssertionError("nothing is sent")

    run(World().app({"type": "websocket"}, None, nothing))


def test_a_large_reply_in_the_test_client_is_complete():
    """Guards the fixture itself: the transport inside the process must not cut replies."""
    body = {"model": "scripted", "prompt": "tokens=500", "max_tokens": 600}
    reply = ask(World(), "POST", "/v1/completions", json=body)
    assert isinstance(reply, httpx.Response)
    assert len(reply.json()["choices"][0]["text"]) == 500


@pytest.mark.parametrize(
    ("allowed", "origin", "is_allowed"),
    [
        ("https://a.example", "https://a.example", True),
        ("https://a.example", "https://axexample", False),
        ("https://*.example", "https://b.c.example", True),
        ("https://*.example", "https://evil.com/.example", False),
        ("chrome-extension://*", "chrome-extension://abcdef", True),
        ("chrome-extension://*", "https://chrome-extension", False),
        ("http://*:3000", "http://box:3000", True),
        ("*", "https://anything.example", True),
    ],
)
def test_an_allowed_origin_may_be_a_pattern(allowed, origin, is_allowed):
    assert origin_allowed(origin, ServerSettings(origins=(allowed,))) == is_allowed
