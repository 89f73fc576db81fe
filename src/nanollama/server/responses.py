"""Answers on their way out: chunks in, server-sent events or one JSON object out.

The status is decided by the first chunk, so that what fails before it has a status of its own. A failure
after that is an error event. Every stream ends with ``data: [DONE]``, unless its reader is gone.
"""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from nanollama.server.gate import SlowClientError
from nanollama.server.generation import Generation
from nanollama.server.problems import JSON, problem_of
from nanollama.server.settings import Limits
from nanollama.server.wire import DONE, comment, sse


class JsonReply(Response):
    """A JSON object in ASCII."""

    media_type = "application/json"

    def render(self, content: JSON) -> bytes:
        return json.dumps(content, separators=(",", ":")).encode("ascii")


class EventStream(Response):
    """An answer sent while it is made."""

    media_type = "text/event-stream"

    def __init__(self, generation: Generation, limits: Limits) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._generation = generation
        self._limits = limits
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            try:
                async with aclosing(self._events()) as events:
                    async for data in events:
                        await self._write(send, data)
            except SlowClientError:
                raise
            except Exception as error:
                if not self._started:
                    raise
                await self._write(send, sse(problem_of(error).body()) + DONE)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await self._generation.close()

    async def _events(self) -> AsyncGenerator[bytes, None]:
        tick_s = self._limits.keepalive_s
        opening = asyncio.create_task(self._generation.open())
        try:
            while not (await asyncio.wait({opening}, timeout=tick_s))[0]:
                yield comment(self._generation.progress)
            await opening
        finally:
            opening.cancel()
            await asyncio.gather(opening, return_exceptions=True)
        async with aclosing(self._generation.batches(tick_s)) as batches:
            async for chunks in batches:
                yield b"".join(map(sse, chunks)) if chunks else comment(self._generation.progress)
        yield DONE

    async def _write(self, send: Send, data: bytes) -> None:
        try:
            async with asyncio.timeout(self._limits.slow_reader_s):
                if not self._started:
                    self._started = True
                    await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                await send({"type": "http.response.body", "body": data, "more_body": True})
        except TimeoutError:
            raise SlowClientError from None
