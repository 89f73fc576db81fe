"""The gate before all handlers: an ASGI request in, the same request with its body read, or a refusal out.

In this order: Host, Origin, key, room in the queue, size of the body. A handler runs as a task that ends when
its client goes away, whatever it is doing, and whatever happens a ticket is given back.
"""

import asyncio
import contextlib
import logging
import re
import secrets
import time
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nanollama.server.auth import PUBLIC_PATHS, host_allowed, origin_allowed
from nanollama.server.metrics import outcome_of
from nanollama.server.problems import Problem, problem_of, refusal, shutting_down
from nanollama.server.services import Call, Services
from nanollama.server.wire import spelled

log = logging.getLogger("nanollama.server")

GENERATES = frozenset({"/v1/chat/completions", "/v1/completions", "/api/chat", "/api/generate"})
"""What needs a ticket."""

UPLOADS = "/api/blobs/"
"""Below here a body is a file, which the handler reads piece by piece; it may be of any size."""

WHILE_DRAINING = frozenset({"/health", "/metrics"})
_HEADER_NAMES = re.compile(r"[A-Za-z0-9-]{1,64}(, ?[A-Za-z0-9-]{1,64}){0,63}", re.ASCII)


class ClientGoneError(Exception):
    """The client closed the connection before its answer was complete."""


class SlowClientError(Exception):
    """The client left its answer unread for too long."""


class Gate:
    """ASGI middleware around the application of :mod:`nanollama.server.app`."""

    def __init__(self, app: ASGIApp, services: Services) -> None:
        self._app = app
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await Passage(self._app, self._services, scope, receive, send).run()


class Passage:
    """One request on its way through the gate."""

    def __init__(self, app: ASGIApp, services: Services, scope: Scope, receive: Receive, send: Send) -> None:
        self._app, self._services = app, services
        self._scope, self._receive, self._send = scope, receive, send
        self._call = Call(id="req_" + secrets.token_hex(12), arrived=time.monotonic())
        self._headers: list[tuple[bytes, bytes]] = scope["headers"]
        self._status: int | None = None
        self._complete = False
        self._added = [(b"x-request-id", self._call.id.encode())]

    async def run(self) -> None:
        outcome = None
        try:
            await self._pass()
        except ClientGoneError:
            outcome = "cancelled"
        except SlowClientError:
            outcome = "slow_client"
            self._abort_connection()
        except Exception as error:
            problem = problem_of(error)
            if problem.code == "internal_error":
                log.error("request %s failed", self._call.id, exc_info=error)
            await self._refuse(problem)
        finally:
            if self._call.ticket is not None:
                self._call.ticket.give_back()
            self._services.metrics.ended(self._scope["path"], outcome or outcome_of(self._status or 500))

    async def _pass(self) -> None:
        path, method = self._scope["path"], self._scope["method"]
        if not host_allowed(self._all(b"host"), self._services.settings):
            raise Problem(403, "The Host header does not name this server.", "host_not_allowed")
        self._check_origin()
        if method == "OPTIONS" and self._all(b"access-control-request-method"):
            return await self._preflight()
        holder = self._services.keys.holder(self._first(b"authorization"))
        if holder is None and path not in PUBLIC_PATHS:
            raise Problem(
                401, "The API key is missing or wrong; send it as a Bearer token.", "invalid_api_key"
            )
        self._call.salt = holder or ""
        admission = self._services.admission
        if admission.draining and path not in WHILE_DRAINING:
            raise shutting_down()
        if path.startswith(UPLOADS):
            self._scope.setdefault("state", {})["call"] = self._call
            return await self._app(self._scope, self._receive, self._sender)
        if method in ("POST", "DELETE"):
            if path in GENERATES and method == "POST":
                self._call.ticket = admission.enter()
            self._call.body = await self._read_body()
        await self._handle()

    def _check_origin(self) -> None:
        origin = self._first(b"origin")
        if origin is None:
            return
        text = origin.decode("latin-1")
        if len(self._all(b"origin")) != 1 or not origin_allowed(text, self._services.settings):
            raise Problem(403, "Pages of this origin may not use this server.", "origin_not_allowed")
        self._added += [(b"access-control-allow-origin", origin), (b"vary", b"Origin")]
        self._added.append((b"access-control-expose-headers", b"x-request-id, retry-after"))

    async def _preflight(self) -> None:
        """What a browser asks before it lets a page call."""
        wanted = (self._first(b"access-control-request-headers") or b"").decode("latin-1")
        names = wanted if _HEADER_NAMES.fullmatch(wanted) else "authorization, content-type"
        headers = [
            (b"access-control-allow-methods", b"GET, HEAD, POST, DELETE, OPTIONS"),
            (b"access-control-allow-headers", names.encode()),
            (b"access-control-max-age", b"600"),
        ]
        await self._sender({"type": "http.response.start", "status": 204, "headers": headers})
        await self._sender({"type": "http.response.body", "body": b""})

    async def _read_body(self) -> bytes:
        limit = self._services.limits.body_bytes
        too_large = Problem(413, f"The request body is larger than {limit >> 20} MiB.", "request_too_large")
        encoding = (self._first(b"content-encoding") or b"identity").strip().lower()
        if encoding != b"identity":
            raise Problem(415, "Compressed request bodies are not supported.", "unsupported_encoding")
        declared = self._first(b"content-length") or b"0"
        if not declared.isdigit() or len(declared) > 18 or int(declared) > limit:
            raise too_large
        pieces, size = [], 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            pieces.append(message.get("body", b""))
            size += len(pieces[-1])
            if size > limit:
                raise too_large
            if not message.get("more_body", False):
                return b"".join(pieces)

    async def _handle(self) -> None:
        """Run the handler until it is done, its client is gone, or the server stops."""
        self._scope.setdefault("state", {})["call"] = self._call
        handler = asyncio.ensure_future(self._app(self._scope, _nothing_more, self._sender))
        gone = asyncio.create_task(self._until_gone())
        try:
            await asyncio.wait({handler, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not handler.done():
                handler.cancel()
                await asyncio.wait({handler})
                raise ClientGoneError
            handler.result()
        finally:
            handler.cancel()
            gone.cancel()
            await asyncio.gather(handler, gone, return_exceptions=True)

    async def _until_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def _sender(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            message["headers"] = [*message.get("headers", []), *self._added]
        elif not message.get("more_body", False):
            self._complete = True
        await self._send(message)

    async def _refuse(self, problem: Problem) -> None:
        if self._status is not None:  # an answer has begun: nothing more can be said
            if not self._complete:
                self._abort_connection()
            return
        status, told = refusal(problem, self._scope["path"])
        body = spelled(told)
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        headers += [(name.encode(), value.encode()) for name, value in problem.headers().items()]
        length = self._first(b"content-length")
        unread = not self._call.body and (self._all(b"transfer-encoding") or len(length or b"") > 6)
        if unread or self._services.admission.draining:
            headers.append((b"connection", b"close"))
        await self._sender({"type": "http.response.start", "status": status, "headers": headers})
        body = b"" if self._scope["method"] == "HEAD" else body
        await self._sender({"type": "http.response.body", "body": body, "more_body": True})
        if unread:
            await self._linger()
        await self._sender({"type": "http.response.body", "body": b""})

    async def _linger(self) -> None:
        """Let a body go to nowhere for a while: closing before it is read would take the answer back."""
        message: Message = {}
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._services.limits.linger_s):
                while message.get("more_body", True) and message.get("type") != "http.disconnect":
                    message = await self._receive()

    def _abort_connection(self) -> None:
        abort: Callable[[], None] | None = self._scope.get("state", {}).get("abort")
        if abort is not None:
            abort()

    def _all(self, name: bytes) -> list[bytes]:
        return [value for key, value in self._headers if key == name]

    def _first(self, name: bytes) -> bytes | None:
        return next(iter(self._all(name)), None)


async def _nothing_more() -> Message:
    """What a handler receives: its body was read before it began."""
    await asyncio.Event().wait()
    raise AssertionError("nothing sets that event")
