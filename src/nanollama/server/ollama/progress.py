"""Long work in a thread as a stream of lines: a job that reports its progress in, Ollama's status lines out.

The client's going ends the work at its next report. Reports that come too fast to be sent are joined.
"""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from nanollama.errors import DownloadError
from nanollama.server.problems import JSON
from nanollama.server.responses import NDJSON, StreamedReply
from nanollama.server.settings import Limits

TICK_S = 0.2
"""The time between two reports of the same piece of work."""

Work = Callable[["LineProgress"], None]


class LineProgress:
    """A ``Progress`` whose reports become lines. Any thread may report."""

    def __init__(self, put: Callable[[JSON], None], digest: str | None = None) -> None:
        self._put = put
        self._digest = digest
        self._what: JSON = {}
        self.cancelled = False

    def say(self, status: str) -> None:
        self._check()
        self._put({"status": status})

    def begin(self, what: str, total: int, done: int = 0, unit: str = "B") -> None:
        digest = self._digest or "sha256:" + hashlib.sha256(what.encode()).hexdigest()
        hexes = digest.removeprefix("sha256:")
        self._what = {"status": f"pulling {hexes[:12]}", "digest": digest, "total": total}
        self.update(done)

    def update(self, done: int) -> None:
        self._check()
        self._put({**self._what, "completed": done})

    def end(self) -> None:
        pass

    def notice(self, text: str) -> None:
        self.say(text)

    def _check(self) -> None:
        if self.cancelled:
            raise DownloadError("the client left before the model was complete")


class StatusLines:
    """The lines of one piece of work, as they come: asyncio reads what a thread writes."""

    def __init__(self, work: Work, threads: ThreadPoolExecutor, digest: str | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._lines: list[JSON] = []
        self._progress = LineProgress(self._from_thread, digest)
        self._done = self._loop.run_in_executor(threads, work, self._progress)
        self._done.add_done_callback(lambda _: self._news.set())

    def _from_thread(self, line: JSON) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._take, line)

    def _take(self, line: JSON) -> None:
        same = self._lines and "completed" in line and self._lines[-1].get("status") == line["status"]
        if same:
            self._lines[-1] = line
        else:
            self._lines.append(line)
        self._news.set()

    async def batches(self) -> AsyncGenerator[list[JSON], None]:
        """What was reported since the last batch. Raises what the work failed with."""
        try:
            while True:
                await self._news.wait()
                self._news.clear()
                batch, self._lines = self._lines, []
                if batch:
                    yield batch
                if self._done.done() and not self._lines:
                    self._done.result()
                    return
                await asyncio.sleep(0 if self._done.done() else TICK_S)
        finally:
            self.cancel()

    async def whole(self) -> JSON:
        """The last line, once everything is done."""
        last: JSON = {}
        async for batch in self.batches():
            last = batch[-1]
        return last

    def cancel(self) -> None:
        """Let the work end at its next report."""
        self._progress.cancelled = True
        self._done.add_done_callback(_forgotten)


class StatusStream(StreamedReply):
    """Status lines sent as they come."""

    def __init__(self, lines: StatusLines, limits: Limits) -> None:
        super().__init__(limits, NDJSON)
        self._lines = lines

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        async for batch in self._lines.batches():
            yield b"".join(map(NDJSON.encode, batch))

    async def leave(self) -> None:
        self._lines.cancel()


def _forgotten(done: "asyncio.Future[Any]") -> None:
    """Nobody asks for what cancelled work failed with."""
    if not done.cancelled():
        done.exception()
