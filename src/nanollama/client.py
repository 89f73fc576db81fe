"""A client of our own server: calls of Ollama's API out, typed answers and events in.

Every call has a connection of its own, which closing an answer's events closes. What the server says went
wrong is raised as the error of ``errors.py`` that its status stands for. Nothing is sent anywhere else.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nanollama.errors import ModelNotFoundError, NanollamaError, OverloadedError, UsageError

if TYPE_CHECKING:
    from http.client import HTTPConnection, HTTPResponse

    from nanollama.types import Completion, TextEvent

JSON = dict[str, Any]

DEFAULT_PORT = 8000
OLLAMA_PORT = 11434
"""Where Ollama listens, if its variable names an address without a port."""

KEY_VARIABLE = "NANOLLAMA_API_KEY"
CONNECT_S = 5.0
MAX_LINE = 64 << 20
"""Bytes of one line or reply; the longest ends an answer and holds all its token ids."""

MAX_MESSAGE = 2000
FOREVER_S = 20 * 365 * 86400.0
"""What stays in memory for longer stays for ever."""

_NANOSECOND = 1e-9
_ADDRESS = re.compile(
    r"(?:(?P<scheme>https?)://)?(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]*)(?::(?P<port>[0-9]{1,5}))?/?",
    re.ASCII,
)
_LOCAL = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}
"""Where a server is found that listens on all addresses."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens."""

    host: str
    port: int
    scheme: str = "http"

    @classmethod
    def parse(cls, text: str, port: int = DEFAULT_PORT) -> "Address":
        """``host``, ``host:port``, ``:port`` or ``http://host:port``.

        Raises:
            ValueError: it is something else.
        """
        found = _ADDRESS.fullmatch(text)
        if found is None or not text or int(found["port"] or 1) not in range(1, 65536):
            raise ValueError(text)
        host, scheme = found["host"].strip("[]"), found["scheme"] or "http"
        return cls(_LOCAL.get(host, host), int(found["port"] or (443 if scheme == "https" else port)), scheme)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Described:
    """What ``/api/show`` says of a model. ``info`` is the metadata of its file, without long lists."""

    modelfile: str
    template: str
    format: str
    context_length: int | None
    info: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Running:
    """A model in the server's memory: sizes in bytes, ``expires_s`` seconds from now, ``None`` for never."""

    name: str
    digest: str
    size: int
    size_vram: int
    n_ctx: int
    expires_s: float | None


class Client:
    """A server and the key it is called with."""

    def __init__(self, address: Address, key: str | None = None) -> None:
        if key is not None and not (key.isascii() and key.isprintable()):
            raise UsageError("the API key has characters other than printable ASCII: no server takes it")
        self.address = address
        self._key = key

    def show(self, model: str) -> Described:
        """Raises ``ModelNotFoundError``."""
        reply = self._call("POST", "/api/show", {"model": model}, model)
        details = _mapping(reply.get("details"))
        length = details.get("context_length")
        return Described(
            modelfile=_text(reply.get("modelfile")),
            template=_text(reply.get("template")),
            format=_text(details.get("format")),
            context_length=length if isinstance(length, int) else None,
            info=_mapping(reply.get("model_info")),
        )

    def running(self) -> list[Running]:
        """The models in memory, latest used first."""
        models = self._call("GET", "/api/ps").get("models")
        return [_running(_mapping(each)) for each in models] if isinstance(models, list) else []

    def load(self, model: str, n_ctx: int | None = None) -> None:
        """Have a model in memory, with a window of ``n_ctx`` tokens. Raises ``ModelNotFoundError``."""
        body: JSON = {"model": model, "stream": False}
        self._call("POST", "/api/generate", body | ({"options": {"num_ctx": n_ctx}} if n_ctx else {}), model)

    def unload(self, model: str) -> None:
        """Have it leave the memory as soon as nobody uses it. Raises ``ModelNotFoundError``."""
        body = {"model": model, "stream": False, "keep_alive": 0}
        self._call("POST", "/api/generate", body, model)

    def events(self, path: str, body: JSON) -> Iterator["TextEvent"]:
        """The answer of ``/api/chat`` or ``/api/generate`` as it comes; closing the iterator ends it.

        The token ids of a chat are not sent: its completion has none.
        """
        from nanollama.types import TextEvent

        pieces = []
        with self._reply("POST", path, body, body.get("model")) as reply:
            while line := reply.readline(MAX_LINE):
                value = self._object(line)
                if "error" in value:
                    raise NanollamaError(_message(value) or f"the server at {self.address} failed")
                text = _text(value.get("response")) + _text(_mapping(value.get("message")).get("content"))
                pieces.append(text)
                if value.get("done"):
                    yield TextEvent(text, _completion("".join(pieces), value))
                    return
                yield TextEvent(text)
        raise self._cut()

    def _call(self, method: str, path: str, body: JSON | None = None, model: str | None = None) -> JSON:
        with self._reply(method, path, body, model) as reply:
            return self._object(reply.read(MAX_LINE))

    @contextmanager
    def _reply(
        self, method: str, path: str, body: JSON | None, model: str | None
    ) -> "Iterator[HTTPResponse]":
        """A reply with status 200, whose connection is closed at the end of the body."""
        from http.client import HTTPException

        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        data = None if body is None else json.dumps(body).encode()
        connection = self._connected()
        try:
            with suppress(BrokenPipeError, ConnectionResetError):  # it refuses before it has read all
                connection.request(method, path, data, headers | {"Content-Type": "application/json"})
            with connection.getresponse() as reply:
                if reply.status != 200:
                    raise self._refusal(reply.status, reply.read(MAX_LINE), model)
                yield reply
        except (OSError, HTTPException):
            raise self._cut() from None
        finally:
            connection.close()

    def _connected(self) -> "HTTPConnection":
        from http.client import HTTPConnection, HTTPSConnection

        kind = HTTPSConnection if self.address.scheme == "https" else HTTPConnection
        connection = kind(self.address.host, self.address.port, timeout=CONNECT_S)
        try:
            connection.connect()
        except OSError as error:
            why = "" if isinstance(error, ConnectionRefusedError) else f" ({error.strerror or error})"
            raise NanollamaError(
                f"no server answers at {self.address}{why}: start one with nanollama serve, or name the "
                "address of another with --server or NANOLLAMA_HOST"
            ) from None
        connection.sock.settimeout(None)  # a model may take its time
        return connection

    def _object(self, data: bytes) -> JSON:
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise NanollamaError(f"what answers at {self.address} is no nanollama server: check the address")
        return value

    def _refusal(self, status: int, data: bytes, model: str | None) -> NanollamaError:
        message = _message(self._object(data)) or f"the server at {self.address} refused with status {status}"
        if status == 401:
            how = "another key than NANOLLAMA_API_KEY" if self._key else "a key: set NANOLLAMA_API_KEY to it"
            return NanollamaError(f"the server at {self.address} asks for {how}")
        if status == 404 and model is not None:
            is_path = model.startswith((".", "/", "~")) or model.lower().endswith(".gguf")
            advice = (
                "without --server a path works too" if is_path else f"fetch it with nanollama pull {model}"
            )
            return ModelNotFoundError(f"the server at {self.address} has no model {model}: {advice}")
        kinds = {400: UsageError, 404: ModelNotFoundError, 429: OverloadedError, 503: OverloadedError}
        return kinds.get(status, NanollamaError)(message)

    def _cut(self) -> NanollamaError:
        return NanollamaError(
            f"the connection to the server at {self.address} was cut before its answer ended: ask again"
        )


def _completion(text: str, last: Mapping[str, Any]) -> "Completion":
    """The fold of an answer. Whoever sends no counts has counted none."""
    from nanollama.types import Completion, Timings

    prompt, cached, answer = (
        _number(last.get(name)) for name in ("prompt_eval_count", "cached_tokens", "eval_count")
    )
    context = last.get("context")
    ids = tuple(context[prompt:]) if isinstance(context, list) else ()
    timings = Timings(
        prefill_tokens=max(0, prompt - cached),
        prefill_s=_number(last.get("prompt_eval_duration")) * _NANOSECOND,
        decode_tokens=max(0, answer - 1),
        decode_s=_number(last.get("eval_duration")) * _NANOSECOND,
        cached_tokens=cached,
    )
    return Completion(
        text,
        ids,
        finish_reason="length" if last.get("done_reason") == "length" else "stop",
        prompt_tokens=prompt,
        timings=timings,
        dropped_messages=_number(last.get("dropped_messages")),
        dropped_tokens=_number(last.get("dropped_tokens")),
    )


def _running(entry: Mapping[str, Any]) -> Running:
    from datetime import UTC, datetime

    try:
        expires = datetime.fromisoformat(_text(entry.get("expires_at"))).astimezone(UTC)
        seconds = (expires - datetime.now(UTC)).total_seconds()
    except (ValueError, OverflowError):
        seconds = FOREVER_S
    return Running(
        name=_text(entry.get("name")),
        digest=_text(entry.get("digest")),
        size=_number(entry.get("size")),
        size_vram=_number(entry.get("size_vram")),
        n_ctx=_number(entry.get("context_length")),
        expires_s=None if seconds >= FOREVER_S else seconds,
    )


def _message(value: Mapping[str, Any]) -> str:
    """What went wrong: a text, or an object that holds one."""
    error = value.get("error")
    return _text(_mapping(error).get("message") if isinstance(error, dict) else error)[:MAX_MESSAGE]


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
