"""A model hub on 127.0.0.1 that follows a script of good and bad answers.

It speaks the two endpoints of the Hugging Face hub that matter here, ``/api/models/...`` and
``/{repo}/resolve/{revision}/{file}``; any other path is a file too.
"""

import hashlib
import json
import random
import re
import socket
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

CONTENT = random.Random(7).randbytes(1_000_000)
COMMIT = "c0ffee" + "0" * 34


def sibling(name: str, content: bytes, lfs: bool | None = None, **changes: Any) -> dict[str, Any]:
    """The row of the hub's file list for ``content``; large files, and ``lfs`` ones, state a SHA-256."""
    row: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": "0" * 40}
    if lfs if lfs is not None else name.endswith((".gguf", ".safetensors")):
        row["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return row | changes


class LocalHub:
    """Serves ``files`` by their last name, and ``content`` for any other path. Each request for a file takes
    one step of ``script``, each question to the API one of ``api_script``; after its end all goes well.

    ``listings`` holds what the API answers for a repository.
    """

    def __init__(self) -> None:
        self.content = CONTENT
        self.files: dict[str, bytes] = {}
        self.etag = ""
        self.listings: dict[str, Any] = {}
        self.script: list[str] = []
        self.api_script: list[str] = []
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.questions: list[tuple[str, dict[str, str]]] = []
        self.pace_s = 0.0
        self.asked = threading.Event()
        self.go_on = threading.Event()
        self.lock = threading.Lock()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1

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

    def publish(self, repo: str, files: dict[str, bytes], **changes: Any) -> None:
        """Makes a repository whose list and files agree."""
        self.files |= {name.rpartition("/")[2]: content for name, content in files.items()}
        self.listings[repo] = {
            "id": repo,
            "sha": COMMIT,
            "siblings": [sibling(name, content) for name, content in files.items()],
            "cardData": {"license": "mit"},
        } | changes

    @property
    def ranges(self) -> list[str | None]:
        return [headers.get("range") for _, headers in self.requests]

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        headers = {k.lower(): v for k, v in handler.headers.items()}
        path = urlsplit(handler.path).path
        is_question = path.startswith("/api/")
        with self.lock:
            (self.questions if is_question else self.requests).append((handler.path, headers))
            script = self.api_script if is_question else self.script
            step, _, argument = (script.pop(0) if script else "serve").partition(" ")
        self.asked.set()
        if step == "status":
            number, _, wait = argument.partition(" ")
            return self._send(handler, int(number), b"", {"Retry-After": wait or "0"})
        if step == "redirect":
            return self._send(handler, 302, b"", {"Location": argument, "Set-Cookie": "who=you; Path=/"})
        if step == "drop":
            handler.close_connection = True
            return None
        if step == "wait":
            self.go_on.wait(30)
        if is_question:
            return self._answer_question(handler, path, step)
        content = self.files.get(unquote(path).rpartition("/")[2], self.content)
        wrong = {"wrong": bytes(len(content)), "long": content + b"more", "less": content[:-1]}
        self._send_part(handler, headers, wrong.get(step, content), step)

    def _answer_question(self, handler: BaseHTTPRequestHandler, path: str, step: str) -> None:
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/(.+)", path)
        listing = self.listings.get(match[1] if match else "search")
        if listing is None:
            return self._send(handler, 404, b"{}", {})
        body = listing if isinstance(listing, bytes) else json.dumps(listing).encode()
        self._send(handler, 200, body, {}, step)

    def _send_part(
        self, handler: BaseHTTPRequestHandler, asked: dict[str, str], body: bytes, step: str
    ) -> None:
        first, _, last = asked.get("range", "bytes=0-").removeprefix("bytes=").partition("-")
        offset, stop = int(first), int(last) + 1 if last else len(body)
        same = "if-range" not in asked or asked["if-range"] == self.etag
        partial = "range" in asked and same and step not in {"ignore-range", "endless"}
        headers = {"Content-Encoding": "gzip"} if step == "gzip" else {}
        if self.etag:
            headers["ETag"] = '"other"' if step == "changed" else self.etag
        if partial:
            shown = offset + 1 if step == "shifted" else offset
            headers["Content-Range"] = f"bytes {shown}-{min(stop, len(body)) - 1}/{len(body)}"
            body = body[offset:stop]
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
        if step in {"unmeasured", "endless"}:
            handler.close_connection = True
        else:
            handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        if step in {"half", "unmeasured", "reset", "stall"}:
            body = body[: len(body) // 2]
        if step == "drip":
            body = self._drip(handler, body)
        self._write(handler, body)
        while step == "endless" and not self.go_on.is_set():
            handler.wfile.write(bytes(65_536))
        if step == "stall":
            self.go_on.wait(30)
        if step == "reset":
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if step in {"half", "reset", "stall"}:
            handler.close_connection = True

    def _drip(self, handler: BaseHTTPRequestHandler, body: bytes) -> bytes:
        """Sends a byte now and then until the client has had enough."""
        while body and not self.go_on.wait(0.02):
            handler.wfile.write(body[:1])
            handler.wfile.flush()
            body = body[1:]
        return body

    def _write(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        """Sends ``body``, at once or in small steps of ``pace_s`` seconds."""
        if not self.pace_s:
            handler.wfile.write(body)
        for start in range(0, len(body) if self.pace_s else 0, 16_384):
            handler.wfile.write(body[start : start + 16_384])
            handler.wfile.flush()
            threading.Event().wait(self.pace_s)
        handler.wfile.flush()
