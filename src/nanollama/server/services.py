"""What the handlers of one server share, put together in one place, and what is known of one call."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from nanollama.server.admission import Admission, Ticket
from nanollama.server.auth import Keys
from nanollama.server.metrics import Metrics
from nanollama.server.pool import ModelPool
from nanollama.server.settings import Limits, ServerSettings

RENDERERS = 4
"""Prompts that are rendered and tokenized at a time; more would only take turns."""


@dataclass(frozen=True)
class Services:
    """One server's parts. ``renderers`` run what takes longer than the event loop may wait."""

    settings: ServerSettings
    limits: Limits
    pool: ModelPool
    admission: Admission
    metrics: Metrics
    keys: Keys
    version: str
    renderers: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(RENDERERS, "render"))


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


@dataclass(slots=True)
class Call:
    """One request that was let in. ``salt`` keeps what is cached for one key's holder from all others."""

    id: str
    arrived: float
    salt: str = ""
    body: bytes = b""
    ticket: Ticket | None = None
