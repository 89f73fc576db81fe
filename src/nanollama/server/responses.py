"""Answers on their way out: chunks in, a stream of events or lines or one JSON object out.

The status is decided by the first chunk, so that what fails before it has a status of its own. A failure
after that is an event of its own. A stream ends as its framing says, unless its reader is gone.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from nanollama.server.alarm import Alarm
from nanollama.server.gate import SlowClientError
from nanollama.server.generation import Generation
from nanollama.server.problems import JSON, Problem, ollama_body, problem_of
from nanollama.server.settings import Limits
from nanollama.server.wire import DONE, comment, spelled


@dataclass(frozen=True, slots=True)
class Framing:
    """How chunks become bytes. ``idle`` is what shows a waiting reader that the connection lives."""

    media_type: str
    before: bytes
    after: bytes
    idle: Callable[[str], bytes] | None
    failure: Callable[[Problem], JSON]
    end: bytes

    def encode(self, value: Mapping[str, Any]) -> bytes:
        """An object, framed."""
        return self.before + spelled(value) + self.after


SSE = Framing("text/event-stream", b"data: ", b"\n\n", comment, Problem.body, DONE)
NDJSON = Framing("application/x-ndjson", b"", b"\n", None, ollama_body, b"")


class JsonReply(Response):
    """A JSON object in ASCII."""

    media_type = "application/json"

    def render(self, content: JSON) -> bytes:
        return spelled(content)


async def answered(generation: Generation, limits: Limits, framing: Framing) -> Response:
    """The answer as it was asked for: streamed, or whole."""
    if generation.streams:
        return AnswerStream(generation, limits, framing)
    try:
        return JsonReply(await generation.whole())
    finally:
        await generation.close()


class StreamedReply(Response):
    """A body sent piece by piece: ``pieces`` makes it, ``leave`` is called however it ends."""

    def __init__(self, limits: Limits, framing: Framing) -> None:
        self.media_type = framing.media_type
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._limits = limits
        self._framing = framing
        self._started = False

    def pieces(self) -> AsyncGenerator[bytes, None]:
        raise AssertionError("a kind of streamed reply says what its pieces are")

    async def leave(self) -> None:
        """Give back what the body was made from."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(None) as patience:
                self._alarm = Alarm(lambda: patience.reschedule(0))
                try:
                    await self._send_all(send)
                finally:
                    self._alarm.close()
        except TimeoutError:
            if patience.expired():
                raise SlowClientError from None
            raise
        finally:
            await self.leave()

    async def _send_all(self, send: Send) -> None:
        try:
            async with aclosing(self.pieces()) as pieces:
                async for data in pieces:
                    await self._write(send, data)
        except Exception as error:
            if not self._started:
                raise
            framing = self._framing
            await self._write(send, framing.encode(framing.failure(problem_of(error))) + framing.end)
        await self._write(send, b"", is_last=True)

    async def _write(self, send: Send, data: bytes, *, is_last: bool = False) -> None:
        self._alarm.set(self._limits.slow_reader_s)
        if not self._started:
            self._started = True
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": data, "more_body": not is_last})
        self._alarm.clear()


class AnswerStream(StreamedReply):
    """An answer sent while it is made."""

    def __init__(self, generation: Generation, limits: Limits, framing: Framing) -> None:
        super().__init__(limits, framing)
        self._generation = generation

    async def leave(self) -> None:
        await self._generation.close()

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        idle, before, after = self._framing.idle, self._framing.before, self._framing.after
        tick_s = None if idle is None else self._limits.keepalive_s
        opening = asyncio.create_task(self._generation.open())
        try:
            while not (await asyncio.wait({opening}, timeout=tick_s))[0]:
                if idle is not None:
                    yield idle(self._generation.progress)
            await opening
        finally:
            opening.cancel()
            await asyncio.gather(opening, return_exceptions=True)
        reply = self._generation.reply
        async with aclosing(self._generation.batches(tick_s)) as batches:
            async for events in batches:
                if events:
                    spelled_chunks = [each for index, event in events for each in reply.spelled(index, event)]
                    yield b"".join([before + each + after for each in spelled_chunks])
                elif idle is not None:
                    yield idle(self._generation.progress)
        if last := b"".join(map(self._framing.encode, reply.closing())) + self._framing.end:
            yield last
