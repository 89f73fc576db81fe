"""Sockets and signals: an ASGI application in, a server that listens until it is told to stop out.

The first SIGTERM or Ctrl+C lets nobody in and waits for what runs, the second ends the process at once.
uvicorn does the rest.
"""

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from nanollama.errors import NanollamaError
from nanollama.server.connection import connections
from nanollama.server.services import Services


class Listener(uvicorn.Server):
    """uvicorn's server with our way of ending. ``on_ready`` is told the port once connections are taken."""

    def __init__(self, app: ASGIApp, services: Services, on_ready: Callable[[int], None]) -> None:
        settings, limits = services.settings, services.limits
        super().__init__(
            uvicorn.Config(
                app,
                host=settings.host.strip("[]"),
                port=settings.port,
                http=connections(limits),
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=limits.idle_s,
                timeout_graceful_shutdown=1,
                h11_max_incomplete_event_size=limits.header_bytes,
            )
        )
        self._services = services
        self._on_ready = on_ready

    def listen(self) -> None:
        """Serve until told to stop.

        Raises:
            NanollamaError: the address can't be listened on.
        """
        failure = _Failure()
        with failure.collected():
            try:
                self.run()
            except SystemExit:
                where = f"{self._services.settings.host}:{self._services.settings.port}"
                raise NanollamaError(
                    f"the server can't listen on {where} ({failure.text}): choose another --port or --host"
                ) from None

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        self._on_ready(self.servers[0].sockets[0].getsockname()[1])

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) and self._services.admission.drained()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take signals while the server runs, and swallow them: an asked-for end is a success."""
        if threading.current_thread() is not threading.main_thread():
            yield  # signals go to the main thread; whoever runs a server elsewhere calls stop
            return
        previous = {each: signal.signal(each, self.handle_exit) for each in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for each, handler in previous.items():
                signal.signal(each, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            os._exit(128 + sig)
        self.stop()

    def stop(self) -> None:
        """Let nobody in from now on, and end when what runs is done or has overrun its time."""
        self._services.admission.drain(self._services.limits.drain_s)
        self.should_exit = True


class _Failure(logging.Handler):
    """uvicorn logs why it can't listen, and exits; this keeps the reason."""

    text = "it could not be started"

    def emit(self, record: logging.LogRecord) -> None:
        if isinstance(record.msg, OSError):
            # What asyncio says repeats the address; numbers of getaddrinfo are negative.
            number = record.msg.errno or 0
            self.text = (
                os.strerror(number) if number > 0 else record.msg.strerror or str(record.msg)
            ).lower()

    @contextlib.contextmanager
    def collected(self) -> Iterator[None]:
        log = logging.getLogger("uvicorn.error")
        level, propagate = log.level, log.propagate
        log.addHandler(self)
        log.setLevel(logging.ERROR)
        log.propagate = False
        try:
            yield
        finally:
            log.removeHandler(self)
            log.setLevel(level)
            log.propagate = propagate
