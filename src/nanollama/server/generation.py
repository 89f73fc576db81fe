"""One request for answers, from its arrival to its end: a job in, batches of events out.

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

from nanollama.errors import NanollamaError
from nanollama.server.jobs import Job, Opened, Reply
from nanollama.server.problems import JSON
from nanollama.server.relay import Relay
from nanollama.server.services import Call, Services
from nanollama.types import TextEvent

if TYPE_CHECKING:
    from nanollama.answer import Answer
    from nanollama.llm import LLM


@dataclass(frozen=True, slots=True)
class Running:
    """What there is of a request once its answers run."""

    relay: Relay
    reply: Reply


class Generation:
    """The answers to one request. Open it, read its chunks, and close it in any case."""

    def __init__(self, services: Services, call: Call, job: Job) -> None:
        self._services = services
        self._call = call
        self._job = job
        self._stack = AsyncExitStack()
        self._running: Running | None = None
        self._stage = "loading"
        self._opener: asyncio.Task[Any] | None = None
        self._failure: Exception | None = None
        if call.ticket is not None:
            call.ticket.extend(job.choices)
            call.ticket.fail = self.fail

    @property
    def streams(self) -> bool:
        """Whether the answer is to be sent while it is made."""
        return self._job.streams

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
            began = time.monotonic()
            lease = self._services.pool.lease(self._job.model, keep=self._job.keep, n_ctx=self._job.n_ctx)
            llm = await self._stack.enter_async_context(lease)
            load_s = time.monotonic() - began
            self._stage = "preparing"
            answers = await self._started(llm)
        except NanollamaError as error:
            raise self._job.explain(error) from None
        except asyncio.CancelledError:
            if self._failure is None or self._opener is None:
                raise
            self._opener.uncancel()
            raise self._failure from None
        finally:
            self._opener = None
        prompt_ids = [answer.prompt_ids for answer in answers]
        opened = Opened(self._call.id, self._services.version, self._call.arrived, load_s, llm, prompt_ids)
        self._running = Running(Relay(answers, self._services.limits.queued_events), self._job.reply(opened))

    @property
    def reply(self) -> Reply:
        """What makes chunks of the events."""
        assert self._running is not None, "a generation is opened before it is read"
        return self._running.reply

    async def batches(self, tick_s: float | None = None) -> AsyncGenerator[list[tuple[int, TextEvent]], None]:
        """The events as they come, each for the reply; none when none came for ``tick_s`` seconds."""
        assert self._running is not None, "a generation is opened before it is read"
        relay, metrics = self._running.relay, self._services.metrics
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
            yield events
        for completion in self._running.reply.completions.values():
            metrics.answered(completion)

    async def whole(self) -> JSON:
        """The whole reply: the fold of all chunks."""
        await self.open()
        reply, chunks = self.reply, []
        async for events in self.batches():
            chunks += [chunk for index, event in events for chunk in reply.chunks(index, event)]
        return reply.fold(chunks + reply.closing())

    async def close(self) -> None:
        """Abort what still runs and give the model back."""
        if self._running is not None:
            self._running.relay.close()
        await self._stack.aclose()

    async def _started(self, llm: "LLM") -> "list[Answer]":
        future = self._services.renderers.submit(self._job.start, llm, self._call.salt)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            future.add_done_callback(_abort_result)
            raise


def _abort_result(future: "Future[list[Answer]]") -> None:
    """The client left while its prompt was being prepared: nothing of it shall run."""
    if not future.cancelled() and future.exception() is None:
        for answer in future.result():
            answer.abort()
