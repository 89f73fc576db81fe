"""Models in memory: a name in, a loaded ``LLM`` out, for as long as someone holds a lease on it.

A model is loaded once however many ask for it, in a thread; loads follow one another. What nobody holds goes
when it has been idle for as long as was asked, or least recently used first when a new model needs its place.
Who needs a wider context window than a model was loaded with waits until nobody uses it, and has it loaded
again; who needs a narrower one uses a part of it.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nanollama.errors import ModelNotFoundError, NanollamaError, UsageError
from nanollama.server.jobs import Keep
from nanollama.server.problems import Problem, invalid, unavailable
from nanollama.server.source import Found, ModelSource

if TYPE_CHECKING:
    from nanollama.llm import LLM

log = logging.getLogger("nanollama.server")

FAILURE_LASTS_S = 5.0
"""How long a failed load is remembered, so that a crowd of requests doesn't repeat it."""

LOAD_FACTOR = 1.1
"""Memory that a model needs for each byte of its file: its weights are mapped and packed once."""

State = Literal["ok", "loading", "failed"]
Key = tuple[Path, str]


@dataclass(slots=True)
class Resident:
    """A model in memory and who holds it."""

    found: Found
    llm: "LLM"
    keep_s: float | None
    leases: int = 0
    used: float = field(default_factory=time.monotonic)
    timer: asyncio.TimerHandle | None = None
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def expires_s(self) -> float | None:
        """Seconds until it goes if nobody uses it; ``None`` if it stays."""
        if self.keep_s is None:
            return None
        begun = time.monotonic() if self.leases else self.used
        return begun + self.keep_s - time.monotonic()


class ModelPool:
    """The models in memory. All methods belong to one event loop."""

    def __init__(
        self,
        source: ModelSource,
        load: "Callable[[Found, int | None], LLM]",
        *,
        served: str | None = None,
        max_models: int = 4,
        keep_alive_s: float | None = 300.0,
        free_bytes: Callable[[], int | None] = lambda: None,
    ) -> None:
        self.source = source
        self._load = load
        self._served = served
        self._max_models = max_models
        self._keep_alive_s = keep_alive_s
        self._free_bytes = free_bytes
        self._residents: dict[Key, Resident] = {}
        self._leaving: list[Resident] = []
        self._loading: dict[Key, asyncio.Task[Resident]] = {}
        self._failures: dict[Key, tuple[float, Problem]] = {}
        self._chores: set[asyncio.Task[None]] = set()
        self._one_load = asyncio.Lock()
        self._threads = ThreadPoolExecutor(1, "load")
        self._preload: asyncio.Task[None] | None = None
        self._preload_failed = False

    def preload(self) -> None:
        """Begin to load the model that the server was started with."""
        if self._served is not None:
            self._preload = asyncio.create_task(self._load_served(self._served))

    async def _load_served(self, name: str) -> None:
        try:
            async with self.lease(name):
                pass
        except Exception as error:
            self._preload_failed = True
            log.error("%s", error)

    def state(self) -> State:
        """Whether requests can be answered: ``ok``, or why not yet or not at all."""
        if self._preload_failed and not self._residents:
            return "failed"
        if self._preload is not None and not self._preload.done():
            return "loading"
        return "ok" if all(each.llm.engine.stats().alive for each in self._residents.values()) else "failed"

    def residents(self) -> list[Resident]:
        """What is in memory, latest used first, and last what leaves as soon as nobody uses it."""
        staying = sorted(self._residents.values(), key=lambda each: each.used, reverse=True)
        return [*staying, *self._leaving]

    @asynccontextmanager
    async def lease(
        self, name: str, *, keep: Keep | None = None, n_ctx: int | None = None
    ) -> AsyncIterator["LLM"]:
        """The model called ``name``, loaded if need be, which stays in memory until the lease ends.

        From then on it is kept as ``keep`` says, or as it was before. Its window holds ``n_ctx`` tokens.

        Raises:
            ModelNotFoundError: there is none of that name on this machine.
            Problem: it can't be loaded, or has no room (503), or its window can't be so wide (400).
        """
        found = self.source.find(name)  # reads a small file at most: less than a turn in a thread costs
        resident = await self._resident(found, n_ctx)
        resident.leases += 1
        if keep is not None:
            resident.keep_s = keep.seconds
        if resident.timer is not None:
            resident.timer.cancel()
            resident.timer = None
        try:
            yield resident.llm
        finally:
            resident.leases -= 1
            resident.used = time.monotonic()
            if self._residents.get(found.key) is resident:
                self._expire_later(resident)
            elif not resident.leases:
                self._soon(self._close(resident))

    async def unload(self, name: str) -> None:
        """Take the model called ``name`` out of memory, when nobody uses it any more.

        Raises:
            ModelNotFoundError: there is none of that name on this machine.
        """
        found = await asyncio.to_thread(self.source.find, name)
        if (resident := self._residents.get(found.key)) is not None:
            await self._retire(resident)

    async def forget(self, found: Found) -> None:
        """Nobody gets ``found`` from memory any more; those that use it finish."""
        if (resident := self._residents.get(found.key)) is not None:
            await self._retire(resident)

    async def _resident(self, found: Found, n_ctx: int | None) -> Resident:
        while True:
            resident = self._residents.get(found.key)
            if resident is None:
                resident = await self._loaded(found, n_ctx)
            if n_ctx is None or n_ctx <= resident.llm.n_ctx:
                return resident
            check_window(n_ctx, resident)
            await self._retire(resident)
            await resident.gone.wait()

    async def _retire(self, resident: Resident) -> None:
        """Let nobody else use it, and unload it: now, or when those that use it are done."""
        if self._residents.get(resident.found.key) is resident:
            del self._residents[resident.found.key]
            self._leaving.append(resident)
            if not resident.leases:
                await self._close(resident)

    async def _close(self, resident: Resident) -> None:
        if resident not in self._leaving:
            return
        self._leaving.remove(resident)
        if resident.timer is not None:
            resident.timer.cancel()
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._threads, resident.llm.close)
        finally:
            resident.gone.set()

    async def _loaded(self, found: Found, n_ctx: int | None) -> Resident:
        failed = self._failures.get(found.key)
        if failed is not None and time.monotonic() - failed[0] < FAILURE_LASTS_S:
            raise failed[1]
        while True:
            task = self._loading.get(found.key)
            if task is None:
                task = self._loading[found.key] = asyncio.create_task(self._bring(found, n_ctx))
                task.add_done_callback(lambda done: done.cancelled() or done.exception())
            resident = await asyncio.shield(task)  # one that gives up must not end it for the others
            if self._residents.get(found.key) is resident:
                return resident

    async def _bring(self, found: Found, n_ctx: int | None) -> Resident:
        try:
            async with self._one_load:
                await self._make_room(found)
                loop = asyncio.get_running_loop()
                llm = await loop.run_in_executor(self._threads, self._load, found, n_ctx)
        except Exception as error:
            problem = _load_problem(found, n_ctx, error)
            if problem.status >= 500:  # what is wrong with one request doesn't concern the next
                self._failures[found.key] = time.monotonic(), problem
            raise problem from error
        finally:
            self._loading.pop(found.key, None)
        self._failures.pop(found.key, None)
        stays = found.argument == self._served
        resident = Resident(found, llm, keep_s=None if stays else self._keep_alive_s)
        self._residents[found.key] = resident
        self._expire_later(resident, at_least_s=1.0)  # those who asked for it have yet to take their leases
        return resident

    async def _make_room(self, found: Found) -> None:
        needed = int(found.size * LOAD_FACTOR)
        while True:
            free = self._free_bytes()
            fits = free is None or needed <= free
            if fits and len(self._residents) + len(self._leaving) < self._max_models:
                return
            idle = [each for each in self._residents.values() if not each.leases]
            if idle:
                await self._retire(min(idle, key=lambda each: each.used))
            elif fits:
                raise unavailable(
                    f"All {self._max_models} models in memory are in use; try again later.", "models_busy", 5
                )
            else:
                assert free is not None
                raise unavailable(
                    f"{found.id} needs about {needed >> 20:,} MiB of memory and {free >> 20:,} MiB are free; "
                    "use a smaller model or free some memory.",
                    "insufficient_memory",
                    30,
                )

    def _expire_later(self, resident: Resident, at_least_s: float = 0.0) -> None:
        if resident.leases or resident.keep_s is None:
            return
        loop = asyncio.get_running_loop()
        resident.timer = loop.call_later(max(resident.keep_s, at_least_s), self._expire, resident)

    def _expire(self, resident: Resident) -> None:
        if not resident.leases:
            self._soon(self._retire(resident))

    def _soon(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def close(self) -> None:
        """Unload everything; loads that still run are left to end by themselves."""
        for task in (self._preload, *self._loading.values()):
            if task is not None:
                task.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await task
        for resident in self.residents():
            with suppress(Exception):
                await self._retire(resident)
                await self._close(resident)
        for chore in list(self._chores):
            with suppress(asyncio.CancelledError, Exception):
                await chore
        self._threads.shutdown(wait=False, cancel_futures=True)


def check_window(n_ctx: int, resident: Resident) -> None:
    """Refuse a wider context window than the model can have, before it is unloaded for it."""
    widest = resident.llm.spec.max_context
    if n_ctx > widest:
        raise invalid(
            f"the context window asked for is {n_ctx} tokens; {resident.found.id} takes at most {widest}",
            "num_ctx",
            "invalid_value",
        )


def _load_problem(found: Found, n_ctx: int | None, error: Exception) -> Problem:
    """What clients are told: the sentence, without the folder that the model lies in."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, ModelNotFoundError):
        return Problem(404, str(error), "model_not_found", "model")
    if isinstance(error, UsageError) and n_ctx is not None:
        return invalid(str(error), "model", "invalid_value")
    if isinstance(error, NanollamaError):
        reason = str(error).replace(str(found.path), found.path.name)
    else:
        log.error("loading %s failed", found.id, exc_info=error)
        reason = "not enough memory" if isinstance(error, MemoryError) else "an unexpected error, see the log"
    return unavailable(f"The model {found.id} could not be loaded: {reason}", "model_load_failed", 10)


def free_memory() -> int | None:
    """Bytes that can still be used on this machine, or in its container; ``None`` where that is not known."""
    free = None
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) << 10
    with suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        left = limit - used + int(stat.get("inactive_file", 0))  # cached files make way
        free = left if free is None else min(free, left)
    return free
