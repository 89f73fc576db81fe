"""One request for answers, from its arrival to its end: a checked request in, batches of chunks out.

Opening it takes a model out of the pool and hands the prompts to the engine; closing it, whenever that
happens, aborts what still runs and gives the model back.
"""

import asyncio
import time
from collections.abc import AsyncGenerator
from concurrent.futures import Future
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nanollama.errors import ContextOverflowError
from nanollama.server.answering import Chunker, start_answers
from nanollama.server.fields import ChatRequest, CompletionRequest
from nanollama.server.problems import JSON, invalid
from nanollama.server.relay import Relay
from nanollama.server.services import Call, Services
from nanollama.server.wire import ChatWire, CompletionWire

if TYPE_CHECKING:
    from nanollama.answer import Answer
    from nanollama.llm import LLM


@dataclass(frozen=True, slots=True)
class Running:
    """What there is of a request once its answers run."""

    relay: Relay
    chunker: Chunker


class Generation:
    """The answers to one request. Open it, read its chunks, and close it in any case."""

    def __init__(self, services: Services, call: Call, request: ChatRequest | CompletionRequest) -> None:
        self._services = services
        self._call = call
        self._request = request
        self._stack = AsyncExitStack()
        self._running: Running | None = None
        self._stage = "loading"
        self._opener: asyncio.Task[Any] | None = None
        self._failure: Exception | None = None
        if call.ticket is not None:
            call.ticket.extend(request.choices)
            call.ticket.fail = self.fail

    @property
    def streams(self) -> bool:
        """Whether the answer is to be sent while it is made."""
        return bool(self._request.stream)

    @property
    def progress(self) -> str:
        """What the request is waiting for."""
        return self._stage if self._running is None else self._running.relay.progress()

    def fail(self, error: Exception) -> None:
        """End with ``error``, whatever is being waited for."""
        self._failure = error
        if self._running is not None:
            self._running.relay.fail(error)
        elif self._opener is not None:
            self._opener.cancel()

    async def open(self) -> None:
        """Wait for the model, and start the answers.

        Raises:
            NanollamaError: the request does not suit the model.
            Problem: the model is not there or can't be loaded.
        """
        if self._failure is not None:
            raise self._failure
        self._opener = asyncio.current_task()
        try:
            llm = await self._stack.enter_async_context(self._services.pool.lease(self._request.model))
            self._stage = "preparing"
            answers = await self._started(llm)
        except asyncio.CancelledError:
            if self._failure is None or self._opener is None:
                raise
            self._opener.uncancel()
            raise self._failure from None
        finally:
            self._opener = None
        self._services.metrics.queue_s.observe(time.monotonic() - self._call.arrived)
        prompt_ids = [answer.prompt_ids for answer in answers]
        self._running = Running(
            Relay(answers, self._services.limits.queued_events),
            Chunker(self._request, self._wire(llm), llm.tokenizer, prompt_ids),
        )

    async def batches(self, tick_s: float | None = None) -> AsyncGenerator[list[JSON], None]:
        """The chunks as they come; an empty list whenever nothing came for ``tick_s`` seconds."""
        assert self._running is not None, "a generation is opened before it is read"
        relay, chunker, metrics = self._running.relay, self._running.chunker, self._services.metrics
        waits_for_first = True
        while True:
            try:
                events = await relay.next_batch(tick_s)
            except TimeoutError:
                yield []
                continue
            if not events:
                break
            if waits_for_first:
                waits_for_first = False
                metrics.first_s.observe(time.monotonic() - self._call.arrived)
            yield [chunk for index, event in events for chunk in chunker.chunks(index, event)]
        for completion in chunker.completions.values():
            metrics.answered(completion)
        if closing := chunker.closing():
            yield closing

    async def whole(self) -> JSON:
        """The whole reply: the fold of all chunks."""
        await self.open()
        chunks = [chunk async for batch in self.batches() for chunk in batch]
        assert self._running is not None
        return self._running.chunker.fold(chunks)

    async def close(self) -> None:
        """Abort what still runs and give the model back."""
        if self._running is not None:
            await self._running.relay.close()
        await self._stack.aclose()

    async def _started(self, llm: "LLM") -> "list[Answer]":
        future = self._services.renderers.submit(start_answers, llm, self._request, self._call.salt)
        try:
            return await asyncio.wrap_future(future)
        except ContextOverflowError as error:
            where = "messages" if isinstance(self._request, ChatRequest) else "prompt"
            raise invalid(str(error), where, "context_length_exceeded") from None
        except asyncio.CancelledError:
            future.add_done_callback(_abort_result)
            raise

    def _wire(self, llm: "LLM") -> ChatWire | CompletionWire:
        chat = isinstance(self._request, ChatRequest)
        return (ChatWire if chat else CompletionWire)(
            id=("chatcmpl-" if chat else "cmpl-") + self._call.id.removeprefix("req_"),
            model=self._request.model,
            created=int(time.time()),
            fingerprint=f"fp_{self._services.version}",
            tokens=llm.tokenizer,
            includes_usage=self._request.includes_usage,
        )


def _abort_result(future: "Future[list[Answer]]") -> None:
    """The client left while its prompt was being prepared: nothing of it shall run."""
    if not future.cancelled() and future.exception() is None:
        for answer in future.result():
            answer.abort()
