"""What the server can be told, checked once: flags of ``serve`` in, frozen settings out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

from nanollama.errors import UsageError


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what a client can make the server hold or wait for. Times are in seconds."""

    body_bytes: int = 16 << 20
    header_bytes: int = 64 << 10
    header_s: float = 10.0
    body_s: float = 30.0
    idle_s: int = 75
    linger_s: float = 2.0
    connections: int = 512
    queued_events: int = 256
    slow_reader_s: float = 30.0
    keepalive_s: float = 5.0
    drain_s: float = 30.0


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """One server. ``model`` is loaded at once, others when they are asked for.

    ``max_seqs`` answers run at a time (in each model) and ``max_queue`` wait; what comes on top is refused.
    ``keep_alive_s`` is how long an idle model stays in memory, ``None`` for ever. ``loading`` goes to
    ``LLM``. ``hosts`` and ``origins`` are names and origins allowed beside those of this machine.
    """

    model: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    insecure: bool = False
    max_seqs: int = 32
    max_queue: int = 128
    max_models: int = 4
    keep_alive_s: float | None = 300.0
    loading: Mapping[str, Any] = field(default_factory=dict)
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.is_local and not self.api_keys and not self.insecure:
            raise UsageError(
                f"the address {self.host} can be reached from other machines: set a key with --api-key, or "
                "let anyone use this server with --insecure"
            )
        if any(not key or not key.isprintable() or not key.isascii() for key in self.api_keys):
            raise UsageError(
                "an API key is empty or has characters other than printable ASCII: choose another"
            )

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the server."""
        return is_local_name(self.host)


def is_local_name(host: str) -> bool:
    """Whether ``host`` is a loopback address or a name that always means one."""
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
