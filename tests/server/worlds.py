"""A whole server over scripted models: in the same process, or behind a real socket."""

import asyncio
import contextlib
import shutil
import tempfile
import threading
import time
import weakref
from pathlib import Path

import httpx
import ollama
import openai

from nanollama.server.app import build_app
from nanollama.server.listen import Listener
from nanollama.server.pool import ModelPool
from nanollama.server.services import make_services
from nanollama.server.settings import Limits, ServerSettings
from nanollama.store.plans import HUB_ONLY
from nanollama.store.store import Store
from server.scripted import ScriptedSource


class World:
    """A server's parts within reach of a test."""

    def __init__(
        self, settings=None, limits=None, source=None, served=None, store=None, hosts=HUB_ONLY, **pool
    ):
        self.settings = settings or ServerSettings(port=0)
        self.limits = limits or Limits()
        self.source = source or ScriptedSource()
        self.pool = ModelPool(self.source, self.source.load, served=served, **pool)
        self.services = make_services(self.settings, self.limits, self.pool)
        self.store = store or self._empty_store()
        self.app = build_app(self.services, self.store, hosts)

    def _empty_store(self):
        """A store of its own: no test changes the models of this machine."""
        folder = tempfile.mkdtemp(prefix="nanollama-test-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return Store(Path(folder) / "models")

    @property
    def llm(self):
        return self.source.models["scripted"]

    @property
    def last_call(self):
        return self.llm.calls[-1]

    @property
    def quiet(self):
        """Whether nobody holds anything: no ticket, and no answer that runs."""
        answers = sum(len(model.engine.open) for model in self.source.models.values())
        return not self.services.admission.held and not answers

    def becomes_quiet(self):
        """Whether everything is given back, if not yet then soon: for tests in another thread."""
        for _ in range(500):
            if self.quiet:
                return True
            time.sleep(0.01)
        return False

    @contextlib.asynccontextmanager
    async def client(self, **headers):
        """A client inside the process, which sees whole replies only."""
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://localhost:8000", headers=headers
        ) as client:
            try:
                yield client
            finally:
                await self.pool.close()
                self.services.renderers.shutdown(wait=False)
                self.services.workers.shutdown(wait=False)

    async def settled(self):
        """Wait until everything was given back; fail if something is kept."""
        assert await soon(lambda: self.quiet), f"{self.services.admission.held} tickets are still held"


class LiveServer(World):
    """The same behind a real socket, in a thread."""

    def __enter__(self):
        self.port = None
        ready = threading.Event()

        def on_ready(port):
            self.port = port
            self.listener_loop = asyncio.get_running_loop()
            ready.set()

        self.listener = Listener(self.app, self.services, on_ready)
        self.thread = threading.Thread(target=self.listener.listen)
        self.thread.start()
        assert ready.wait(10)
        return self

    def __exit__(self, *_):
        self.source.hold.set()
        for model in self.source.models.values():
            for answer in list(model.engine.open):
                answer.abort()
        self.listener.stop()
        self.thread.join(10)
        assert not self.thread.is_alive()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def ollama(self, kind=ollama.Client, **options):
        """Ollama's own client of this server."""
        return kind(host=self.url, timeout=20, **options)

    def openai(self, **options):
        return openai.OpenAI(
            **{"base_url": f"{self.url}/v1", "api_key": "any", "max_retries": 0, "timeout": 20} | options
        )


async def soon(condition):
    """Whether ``condition`` comes true, if not yet then within some seconds."""
    for _ in range(500):
        if condition():
            return True
        await asyncio.sleep(0.01)
    return False


def run(coroutine):
    """The result of a test's coroutine, within a time that no test needs."""

    async def bounded():
        async with asyncio.timeout(30):
            return await coroutine

    return asyncio.run(bounded())
