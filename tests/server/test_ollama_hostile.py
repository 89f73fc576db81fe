"""Hostile names, digests and bodies at every endpoint: never a failure, and nothing outside the store."""

import os
from urllib.parse import quote

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode

from nanollama.store.store import Store
from server.worlds import LiveServer

ZEROS = "0" * 64
NAMES = [
    *("../../etc/passwd", "/etc/passwd", "..", ".", "...", "a/../b", "a/b/c/d/e", "~/x", "C:\\x", "con"),
    *("a:../b", "a:..", "a\x00b", "a\nb", "a%2f..%2fb", "\u202eabc", "\uff0e\uff0e/x", "a" * 300, "a/" * 200),
    *("-rf", "x.part", "models.json", "..\\..\\x", "file:///etc/passwd", "http://127.0.0.1:22/x", "nul:1"),
    *("localhost:22/a/b", "169.254.169.254/a/b", "hf.co/../..", "hf.co/a/b:../c", "library/../x:1", " a"),
    *("a ", "http://[::1]/x"),
]
DIGESTS = [
    *("sha256:" + ZEROS[1:], "sha256:0" + ZEROS, "sha256:" + "A" * 64, "sha256-" + ZEROS, "sha256:../../x"),
    *("sha256:" + "%2e%2e%2f" * 7 + "0", "..", "../../etc/passwd", "sha512:" + ZEROS, f"sha256:{ZEROS[1:]}g"),
    *(f"sha256:{ZEROS[1:]}\u0661", "x" * 5000, f"sha256:{ZEROS}\x00", "/etc/passwd"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with things that belong to somebody else, and the store in it."""
    folder = tmp_path_factory.mktemp("machine")
    for name in ("etc/passwd", "models-old/x.gguf", "x", "b"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("not yours")
    (folder / "data/nanollama/models").mkdir(parents=True)
    return folder


@pytest.fixture(scope="module")
def live(place):
    store = Store(place / "data/nanollama/models")
    with LiveServer(store=store) as server:
        yield server


@pytest.fixture(scope="module")
def web(live):
    with httpx.Client(base_url=live.url, timeout=20) as client:
        yield client


def snapshot(folder):
    """Everything there, but for the store itself."""
    store = folder / "data/nanollama/models"
    found = {}
    for parent, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = os.path.join(parent, name)
            if path != str(store) and not path.startswith(f"{store}/"):
                status = os.lstat(path)
                found[path] = status.st_ino, status.st_size, status.st_mtime_ns
    return found


def bodies(name):
    yield "POST", "/api/generate", {"model": name, "prompt": "hi", "stream": False}
    yield (
        "POST",
        "/api/chat",
        {"model": name, "messages": [{"role": "user", "content": "x"}], "stream": False},
    )
    yield "POST", "/api/generate", {"model": name, "keep_alive": 0}
    yield "POST", "/api/show", {"model": name}
    yield "DELETE", "/api/delete", {"model": name}
    yield "POST", "/api/copy", {"source": "scripted", "destination": name}
    yield "POST", "/api/copy", {"source": name, "destination": "fine"}
    yield "POST", "/api/create", {"model": name, "from": "scripted", "stream": False}
    yield "POST", "/api/create", {"model": "fine", "from": name, "stream": False}
    yield "POST", "/api/create", {"model": "fine", "files": {name: "sha256:" + "0" * 64}, "stream": False}
    yield "POST", "/api/pull", {"model": name, "stream": False}


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name[:30]))
def test_no_name_reaches_out_of_the_store(web, place, name, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = snapshot(place)
    for method, path, body in bodies(name):
        reply = web.request(method, path, json=body)
        assert 400 <= reply.status_code < 500 or reply.status_code in (502, 503), (path, reply.text)
        assert set(reply.json()) == {"error"}
        assert str(place) not in reply.text
    assert snapshot(place) == before


@pytest.mark.parametrize("digest", DIGESTS, ids=lambda digest: ascii(digest[:30]))
def test_no_digest_reaches_out_of_the_store(web, place, digest):
    before = snapshot(place)
    quoted = f"/api/blobs/{quote(digest, safe='')}"
    for method in ("HEAD", "POST"):
        reply = web.request(method, quoted, content=b"abc" if method == "POST" else None)
        assert 400 <= reply.status_code < 500, reply.text
    reply = web.post("/api/create", json={"model": "fine", "files": {"a.gguf": digest}, "stream": False})
    assert reply.status_code == 400
    assert snapshot(place) == before


@pytest.fixture(scope="module")
def schema(live):
    found = schemathesis.openapi.from_dict(httpx.get(f"{live.url}/openapi.json").json())
    found.config.update(base_url=live.url)
    return found


FUZZED = [
    *(("/api/chat", "POST"), ("/api/generate", "POST"), ("/api/show", "POST"), ("/api/create", "POST")),
    *(("/api/copy", "POST"), ("/api/delete", "DELETE")),
]


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize(("path", "method"), FUZZED)
def test_made_up_requests_get_an_answer_or_a_refusal_but_never_a_failure(schema, mode, path, method):
    @settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(st.data())
    def check(data):
        case = data.draw(schema[path][method].as_strategy(generation_mode=mode))
        if isinstance(case.body, dict) and "model" in case.body and path in ("/api/chat", "/api/generate"):
            case.body["model"] = "scripted"  # or hardly any request would come further than its name
        reply = case.call()
        assert reply.status_code < 500
        if reply.status_code >= 400:
            assert set(reply.json()) == {"error"}

    check()
