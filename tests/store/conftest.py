"""A model hub on 127.0.0.1 that follows a script of good and bad answers."""

import hashlib
import random
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from nanollama.store.catalogue import Entry, HubFile, Source
from nanollama.store.fetch import Fetcher, FetchSettings
from nanollama.store.names import Digest, ModelName
from nanollama.store.store import Store

MakeEntry = Callable[..., Entry]
MakeStore = Callable[..., Store]

CONTENT = random.Random(7).randbytes(1_000_000)


class LocalHub:
    """Serves ``content``. Each request takes one step of ``script``; after its end all are answered well."""

    def __init__(self) -> None:
        self.content = CONTENT
        self.script: list[str] = []
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.asked = threading.Event()
        self.go_on = threading.Event()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.answer(self)

            def log_message(self, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *args: object) -> None:
                pass  # clients that go away are part of the tests

        self.server = Server(("127.0.0.1", 0), Handler)
        self.port = self.server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.go_on.set()
        self.server.shutdown()
        self.server.server_close()

    @property
    def ranges(self) -> list[str | None]:
        return [headers.get("range") for _, headers in self.requests]

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        self.requests.append((handler.path, {k.lower(): v for k, v in handler.headers.items()}))
        step, _, argument = (self.script.pop(0) if self.script else "serve").partition(" ")
        offset = int((handler.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        self.asked.set()
        if step == "status":
            return self._send(handler, int(argument), b"", {"Retry-After": "0"})
        if step == "redirect":
            return self._send(handler, 302, b"", {"Location": argument})
        if step == "wait":
            self.go_on.wait(30)
        wrong = {"wrong": bytes(len(self.content)), "long": self.content + b"more", "less": self.content[:-1]}
        body = wrong.get(step, self.content)
        partial = offset > 0 and step != "ignore-range"
        headers = {"Content-Encoding": "gzip"} if step == "gzip" else {}
        if partial:
            first = offset + 1 if step == "shifted" else offset
            headers["Content-Range"] = f"bytes {first}-{len(body) - 1}/{len(body)}"
            body = body[offset:]
        self._send(handler, 206 if partial else 200, body, headers, step)

    def _send(
        self,
        handler: BaseHTTPRequestHandler,
        status: int,
        body: bytes,
        headers: dict[str, str],
        step: str = "",
    ) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        if step == "unmeasured":
            handler.close_connection = True
        else:
            handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        if step in {"half", "unmeasured", "reset", "stall"}:
            body = body[: len(body) // 2]
        handler.wfile.write(body)
        handler.wfile.flush()
        if step == "stall":
            self.go_on.wait(30)
        if step == "reset":
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if step in {"half", "reset", "stall"}:
            handler.close_connection = True


@pytest.fixture
def hub() -> Iterator[LocalHub]:
    hub = LocalHub()
    yield hub
    hub.close()


@pytest.fixture
def other_hub() -> Iterator[LocalHub]:
    hub = LocalHub()
    yield hub
    hub.close()


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of this machine reaches the tests, and pip can't reach an index."""
    for name in ("HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE", "PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")


@pytest.fixture
def make_entry() -> MakeEntry:
    """Makes the catalogue entry of a small model, by default ``CONTENT`` from the hub."""

    def make(*sources: Source, content: bytes = CONTENT, size: int | None = None) -> Entry:
        return Entry(
            name=ModelName.parse("toy:1b"),
            file="toy.gguf",
            size=len(content) if size is None else size,
            digest=Digest(f"sha256:{hashlib.sha256(content).hexdigest()}"),
            licence="MIT",
            sources=sources or (HubFile("org/toy", "abc", "toy.gguf"),),
        )

    return make


@pytest.fixture
def make_store(tmp_path: Path, hub: LocalHub, make_entry: MakeEntry) -> MakeStore:
    """Makes a store in an empty folder whose catalogue is ``entry`` and whose hub is ``hub``."""

    def make(entry: Entry | None = None, **settings: object) -> Store:
        fetcher = Fetcher(FetchSettings(**({"endpoint": hub.url} | settings)))
        return Store(tmp_path / "models", fetcher, (entry or make_entry(),), backoff_s=0)

    return make


class Recorder:
    """Keeps what a progress is told."""

    def __init__(self) -> None:
        self.notices: list[str] = []
        self.begun: list[tuple[str, int, int]] = []
        self.updates: list[int] = []
        self.ended = 0

    def begin(self, what: str, total: int, done: int = 0, unit: str = "B") -> None:
        self.begun.append((what, total, done))

    def update(self, done: int) -> None:
        self.updates.append(done)

    def end(self) -> None:
        self.ended += 1

    def notice(self, text: str) -> None:
        self.notices.append(text)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()
