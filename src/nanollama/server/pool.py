"""Models in memory: a name in, a loaded ``LLM`` out, for as long as someone holds a lease on it.

A model is loaded once however many ask for it, in a thread; loads follow one another. What nobody holds goes
when it has been idle for long enough, or least recently used first when a new model needs its place.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from nanollama.errors import ModelNotFoundError, NanollamaError
from nanollama.server.problems import Problem, unavailable
from nanollama.server.source import Found, ModelSource

if TYPE_CHECKING:
    from nanollama.llm import LLM

log = logging.getLogger("nanollama.server")

FAILURE_LASTS_S = 5.0
"""How long a failed load is remembered, so that a crowd of requests doesn't repeat it."""

LOAD_FACTOR = 1.1
"""Memory that a model needs for each byte of its file: its weights are mapped and packed once."""

State = Literal["ok", "loading", "failed"]


@dataclass(slots=True)
class Resident:
    """A model in memory and who holds it."""

    found: Found
    llm: "LLM"
    stays: bool
    leases: int = 0
    used: float = field(default_factory=time.monotonic)
    timer: asyncio.TimerHandle | None = None


class ModelPool:
    """The models in memory. All methods belong to one event loop."""

    def __init__(
        self,
        source: ModelSource,
        load: Callable[[Found], "LLM"],
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
        self._residents: dict[Path, Resident] = {}
        self._loading: dict[Path, asyncio.Task[Resident]] = {}
        self._failures: dict[Path, tuple[float, Problem]] = {}
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
            log.error("the model %s could not be loaded: %s", name, error)

    def state(self) -> State:
        """Whether requests can be answered: ``ok``, or why not yet or not at all."""
        if self._preload_failed and not self._residents:
            return "failed"
        if self._preload is not None and not self._preload.done():
            return "loading"
        return "ok" if all(each.llm.engine.stats().alive for each in self._residents.values()) else "failed"

    def residents(self) -> list[tuple[str, "LLM"]]:
        """Ids and models in memory."""
        return [(each.found.id, each.llm) for each in self._residents.values()]

    @asynccontextmanager
    async def lease(self, name: str) -> AsyncIterator["LLM"]:
        """The model called ``name``, loaded if need be, which stays in memory until the lease ends.

        Raises:
            ModelNotFoundError: there is none of that name on this machine.
            Problem: it can't be loaded, or there is no room for it (503).
        """
        found = await asyncio.to_thread(self.source.find, name)
        resident = self._residents.get(found.path) or await self._loaded(found)
        resident.leases += 1
        if resident.timer is not None:
            resident.timer.cancel()
            resident.timer = None
        try:
            yield resident.llm
        finally:
            resident.leases -= 1
            resident.used = time.monotonic()
            self._expire_later(resident)

    async def _loaded(self, found: Found) -> Resident:
        failed = self._failures.get(found.path)
        if failed is not None and time.monotonic() - failed[0] < FAILURE_LASTS_S:
            raise failed[1]
        while True:
            task = self._loading.get(found.path)
            if task is None:
                task = self._loading[found.path] = asyncio.create_task(self._bring(found))
                task.add_done_callback(lambda done: done.cancelled() or done.exception())
            resident = await asyncio.shield(task)  # one that gives up must not end it for the others
            if self._residents.get(found.path) is resident:
                return resident

    async def _bring(self, found: Found) -> Resident:
        try:
            async with self._one_load:
                await self._make_room(found)
                loop = asyncio.get_running_loop()
                llm = await loop.run_in_executor(self._threads, self._load, found)
        except Exception as error:
            problem = _load_problem(found, error)
            self._failures[found.path] = time.monotonic(), problem
            raise problem from error
        finally:
            self._loading.pop(found.path, None)
        self._failures.pop(found.path, None)
        resident = Resident(found, llm, stays=found.argument == self._served)
        self._residents[found.path] = resident
        self._expire_later(resident, at_least_s=1.0)  # those who asked for it have yet to take their leases
        return resident

    async def _make_room(self, found: Found) -> None:
        needed = int(found.size * LOAD_FACTOR)
        while True:
            free = self._free_bytes()
            fits = free is None or needed <= free
            if fits and len(self._residents) < self._max_models:
                return
            idle = [each for each in self._residents.values() if not each.leases]
            if idle:
                await self._unload(min(idle, key=lambda each: each.used))
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
        if resident.leases or resident.stays or self._keep_alive_s is None:
            return
        loop = asyncio.get_running_loop()
        resident.timer = loop.call_later(max(self._keep_alive_s, at_least_s), self._expire, resident)

    def _expire(self, resident: Resident) -> None:
        if not resident.leases:
            task = asyncio.create_task(self._unload(resident))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def _unload(self, resident: Resident) -> None:
        """Take a model that nobody holds out of memory."""
        if resident.timer is not None:
            resident.timer.cancel()
        if self._residents.pop(resident.found.path, None) is not None:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._threads, resident.llm.close)

    async def close(self) -> None:
        """Unload everything; loads that still run are left to end by themselves."""
        for task in (self._preload, *self._loading.values()):
            if task is not None:
                task.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await task
        for resident in list(self._residents.values()):
            with suppress(Exception):
                await self._unload(resident)
        self._threads.shutdown(wait=False, cancel_futures=True)


def _load_problem(found: Found, error: Exception) -> Problem:
    """What clients are told: the sentence, without the folder that the model lies in."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, ModelNotFoundError):
        return Problem(404, str(error), "model_not_found", "model")
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
