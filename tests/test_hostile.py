"""5,000 hostile names and digests at each way in: nothing outside the store changes, and nothing fails.

By default each text goes to one entry point of a kind; ``-m hostile`` sends all of them to all.
"""

import asyncio
import io
import json
import os
import random
import sys
import tempfile
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from hashlib import sha256
from types import SimpleNamespace
from urllib.parse import unquote

import pytest

from hostile import COUNT, KEPT, WRITTEN_DOWN, ZEROS, Place, hostile_texts
from models import gguf_bytes
from nanollama.cli.main import main
from nanollama.errors import FormatError, NanollamaError
from nanollama.server.source import StoreSource
from nanollama.store import fetch
from nanollama.store.names import Digest, ModelName
from nanollama.store.transfer import SourceError
from server.worlds import World

COMMANDS = (
    *("path {}", "show {}", "show --modelfile {}", "rm {}", "rm --delete-file {}", "verify {}", "pull {}"),
    *(f"cp {KEPT} {{}}", "cp {} copied", "cp {} {}", "verify --repair {}", "run {} hello", "stop {}"),
    *("run --raw {} hello", "--model {} --prompt hello", "import {}", "import m.gguf --name {}"),
    *("import ollama --from {}", "import hf --from {}", "search {}", "bench {}", "perplexity {} ../secret"),
    *(
        "quantize {} ../data/nanollama/models/out.gguf --type q8_0",
        "create {} -f -",
        "create made -f {}",
        "completion {}",
    ),
    *("create made -f - --quantize {}", "serve {} --host 192.0.2.1 --insecure", "batch {}", "{}"),
)
"""What is typed; the text stands where the braces are."""

MODELFILES = (
    *("FROM {}", 'FROM "{}"', 'FROM """{}"""', "from\t{}", "FROM {}\nADAPTER {}", "{}"),
    *(f"FROM {KEPT}\nADAPTER {{}}", f'FROM {KEPT}\nADAPTER "{{}}"', f"ADAPTER {{}}\nFROM {KEPT}"),
)

SAY = [{"role": "user", "content": "hi"}]
CALLS = {
    "show": ("POST", "/api/show", lambda text: {"model": text}),
    "copy from": ("POST", "/api/copy", lambda text: {"source": text, "destination": "copied"}),
    "copy to": ("POST", "/api/copy", lambda text: {"source": KEPT, "destination": text}),
    "delete": ("DELETE", "/api/delete", lambda text: {"model": text}),
    "create": ("POST", "/api/create", lambda text: {"model": text, "from": KEPT, "stream": False}),
    "create from": ("POST", "/api/create", lambda text: {"model": "made", "from": text, "stream": False}),
    "quantize": (
        "POST",
        "/api/create",
        lambda text: {"model": "made", "from": KEPT, "quantize": text, "stream": False},
    ),
    "create of a digest": (
        "POST",
        "/api/create",
        lambda text: {"model": "made", "files": {"m.gguf": text}, "stream": False},
    ),
    "create of a file": (
        "POST",
        "/api/create",
        lambda text: {"model": "made", "files": {text: BLOB}, "stream": False},
    ),
    "adapters": (
        "POST",
        "/api/create",
        lambda text: {"model": "made", "from": KEPT, "adapters": {text: text}, "stream": False},
    ),
    "pull": ("POST", "/api/pull", lambda text: {"model": text, "stream": False}),
    "pull, streamed": ("POST", "/api/pull", lambda text: {"model": text}),
    "generate": ("POST", "/api/generate", lambda text: {"model": text, "prompt": "hi", "stream": False}),
    "unload": ("POST", "/api/generate", lambda text: {"model": text, "keep_alive": 0}),
    "chat": ("POST", "/api/chat", lambda text: {"model": text, "messages": SAY, "stream": False}),
    "chat completion": ("POST", "/v1/chat/completions", lambda text: {"model": text, "messages": SAY}),
    "completion": ("POST", "/v1/completions", lambda text: {"model": text, "prompt": "hi"}),
    "tokenize": ("POST", "/tokenize", lambda text: {"model": text, "prompt": "hi"}),
    "detokenize": ("POST", "/detokenize", lambda text: {"model": text, "tokens": [1]}),
    "model": ("GET", "/v1/models/{}", None),
    "has blob": ("HEAD", "/api/blobs/{}", None),
    "blob": ("POST", "/api/blobs/{}", None),
}
"""Method, path and body of each call that takes a name or a digest."""

AT_A_TIME = 8
"""Calls on their way together."""

CONTENT = gguf_bytes()
BLOB = f"sha256:{sha256(CONTENT).hexdigest()}"


class RefusingFetcher(fetch.Fetcher):
    """The network is never asked."""

    def __init__(self, settings=None):
        super().__init__(fetch.FetchSettings())

    def _refuse(self, *_, **__):
        raise SourceError("there is no network here")

    open = ask_hub = inspect = _refuse


@pytest.fixture
def place(tmp_path, monkeypatch):
    place = Place(tmp_path)
    for name in (
        "OLLAMA_MODELS",
        "NANOLLAMA_HOST",
        "XDG_STATE_HOME",
        "XDG_CACHE_HOME",
        "HF_HUB_CACHE",
        "HF_HOME",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(place.root.parent.parent))
    monkeypatch.setenv("HOME", str(place.home))
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:1")
    monkeypatch.setenv("TMPDIR", str(place.temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("LANGUAGE", "C")  # or argparse looks for translations on the disk, each time
    monkeypatch.setattr(fetch, "Fetcher", RefusingFetcher)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # power failures are other tests' business
    monkeypatch.chdir(place.work)
    before = place.outside()
    yield place
    after = place.outside()
    changed = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    assert not changed
    assert KEPT in {str(record.name) for record in place.store().list()}
    place.forget_all_but_kept()
    leftovers = {path.rpartition("/")[2] for path in place.inside()}
    assert leftovers <= {"m.gguf", ".lock", "models.json", "models.json.bak", "models.json.lock"}


def sent(kinds, seed, everything):
    """Pairs of an entry point and a text."""
    texts = hostile_texts(seed)
    if everything:
        return [(kind, text) for kind in kinds for text in texts]
    chance = random.Random(str(seed))
    return [(chance.choice(kinds), text) for text in texts]


def amount(function):
    """The test for a default run, and for one with ``-m hostile``."""
    thorough = pytest.param(True, marks=pytest.mark.hostile, id="everything everywhere")
    return pytest.mark.parametrize("everything", [pytest.param(False, id="each once"), thorough])(function)


def typed(argv, stdin=b""):
    """Exit code and what was said."""
    out, err = io.StringIO(), io.StringIO()
    before, sys.stdin = sys.stdin, SimpleNamespace(buffer=io.BytesIO(stdin), isatty=lambda: False)
    try:
        with redirect_stdout(out), redirect_stderr(err):
            return main(argv), out.getvalue(), err.getvalue()
    finally:
        sys.stdin = before


@amount
def test_no_argument_of_the_command_line_changes_anything_but_the_store(place, everything):
    codes = Counter()
    for command, text in sent(COMMANDS, "command line", everything):
        argv = [word.replace("{}", text) for word in command.split()]
        code, out, err = typed(argv, f"FROM {KEPT}\n".encode())
        assert code in (0, 1, 2), (argv, code)
        assert code == 0 or "nanollama: " in err, (argv, out, err)
        codes[code] += 1
        if code == 0:
            place.forget_all_but_kept()
    assert codes.total() >= COUNT
    assert codes[0] < codes.total() / 4, "most are refused"


@amount
def test_no_modelfile_changes_anything_but_the_store(place, everything):
    codes = Counter()
    for form, text in sent(MODELFILES, "modelfile", everything):
        content = form.replace("{}", text).encode("utf-8", "surrogatepass")
        code, _, err = typed(["create", "made", "-f", "-"], content)
        assert code in (0, 1, 2), (content, code, err)
        codes[code] += 1
        if code == 0:
            place.forget_all_but_kept()
    assert codes.total() >= COUNT


class Reply:
    """What an application sends for one call, gathered."""

    def __init__(self):
        self.status, self.body = 0, b""

    async def take(self, message):
        self.status = message.get("status", self.status)
        self.body += message.get("body", b"")


async def called(app, method, path, body):
    """The reply to one call. ``path`` arrives as it is: no client has tidied it up."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]
    waiting = asyncio.Event()

    async def receive():
        if messages:
            return messages.pop()
        await waiting.wait()

    headers = [(b"host", b"localhost"), (b"content-length", str(len(body)).encode())]
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode("utf-8", "surrogatepass"),
        "root_path": "",
        "query_string": b"",
        "headers": headers,
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 8000),
    }
    reply = Reply()
    await app(scope, receive, reply.take)
    return reply


class StoredModels(StoreSource):
    """The models of a store, which are found and not loaded."""

    def load(self, found, n_ctx=None):
        raise FormatError("it is a model in name only")


async def sent_over_http(place, calls):
    world = World(source=StoredModels(store=place.store()), store=place.store(fetcher=RefusingFetcher()))
    statuses = Counter()

    async def send(kind, text):
        method, path, make = CALLS[kind]
        body = b"abc" if make is None else json.dumps(make(text)).encode()
        if kind == "create of a file":
            uploaded = await called(world.app, "POST", f"/api/blobs/{BLOB}", CONTENT)
            assert uploaded.status in (200, 201)
        for target in {path.replace("{}", text), path.replace("{}", unquote(text))}:
            reply = await called(world.app, method, target, body)
            statuses[reply.status] += 1
            unreachable = reply.status == 502 and b"there is no network here" in reply.body
            assert 200 <= reply.status < 500 or unreachable, (kind, text, reply.status, reply.body)
            assert str(place.folder).encode() not in reply.body, (kind, text)

    for start in range(0, len(calls), AT_A_TIME):
        done = statuses[200] + statuses[201]
        await asyncio.gather(*(send(kind, text) for kind, text in calls[start : start + AT_A_TIME]))
        if statuses[200] + statuses[201] > done:
            place.forget_all_but_kept()
    await world.pool.close()
    world.services.renderers.shutdown()
    world.services.workers.shutdown()
    return statuses


@amount
def test_no_call_over_http_changes_anything_but_the_store(place, everything):
    statuses = asyncio.run(sent_over_http(place, sent(tuple(CALLS), "http", everything)))
    assert statuses.total() >= COUNT
    assert statuses[200] < statuses.total() / 4, "most are refused"


def test_a_name_is_a_folder_of_the_store_and_a_digest_is_hexadecimal(place):
    names = digests = 0
    store = place.store()
    for text in hostile_texts("types"):
        try:
            folder = store.folder(ModelName.parse(text))
        except NanollamaError:
            pass
        else:
            names += 1
            parts = folder.relative_to(place.root).parts
            assert len(parts) in (3, 4)
            assert not {"", ".", ".."} & set(parts)
        try:
            digest = Digest(text)
        except FormatError:
            continue
        digests += 1
        assert len(digest.hex) == 64
        assert set(digest.hex) <= set("0123456789abcdef")
    assert names > 50, "some must be names, or this tests nothing"
    assert f"sha256:{ZEROS}" in WRITTEN_DOWN
    assert digests >= 2
