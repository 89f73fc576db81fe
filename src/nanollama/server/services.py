"""What the handlers of one server share, put together in one place, and what is known of one call."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from nanollama.server.admission import Admission, Ticket
from nanollama.server.auth import Keys
from nanollama.server.body import parse_object
from nanollama.server.metrics import Metrics
from nanollama.server.pool import ModelPool
from nanollama.server.settings import Limits, ServerSettings
from nanollama.server.tables import Body

RENDERERS = 4
"""Prompts that are rendered and tokenized at a time; more would only take turns."""

WORKERS = 4
"""Models that are pulled or made at a time; more wait."""

SMALL_BODY_BYTES = 64 << 10
"""Up to this size a body is parsed at once; a larger one in a thread, so that others don't wait for it."""


@dataclass(frozen=True)
class Services:
    """One server's parts.

    ``renderers`` run what takes longer than the event loop may wait, ``workers`` what takes minutes.
    """

    settings: ServerSettings
    limits: Limits
    pool: ModelPool
    admission: Admission
    metrics: Metrics
    keys: Keys
    version: str
    renderers: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(RENDERERS, "render"))
    workers: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(WORKERS, "work"))


def make_services(settings: ServerSettings, limits: Limits, pool: ModelPool) -> Services:
    """The parts of a server over a pool of models."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        number = version("nanollama")
    except PackageNotFoundError:  # run from its source folder
        number = "0"
    return Services(
        settings=settings,
        limits=limits,
        pool=pool,
        admission=Admission(settings.max_seqs, settings.max_queue),
        metrics=Metrics(pool.residents),
        keys=Keys(settings.api_keys),
        version=number,
    )


B = TypeVar("B", bound=Body)


async def read_body(services: Services, call: "Call", kind: type[B]) -> B:
    """The checked body of a call. Raises ``Problem``."""
    if len(call.body) < SMALL_BODY_BYTES:
        return kind.read(parse_object(call.body))
    future = services.renderers.submit(lambda: kind.read(parse_object(call.body)))
    return await asyncio.wrap_future(future)


@dataclass(slots=True)
class Call:
    """One request that was let in. ``salt`` keeps what is cached for one key's holder from all others."""

    id: str
    arrived: float
    salt: str = ""
    body: bytes = b""
    ticket: Ticket | None = None
