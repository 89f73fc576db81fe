"""Who may call: keys, Host and Origin of a request in, a decision out. Plain functions of their arguments."""

import hashlib
import hmac
import re
from collections.abc import Iterable, Sequence
from urllib.parse import urlsplit

from nanollama.server.settings import ServerSettings, is_local_name

PUBLIC_PATHS = frozenset({"/health"})
"""What is answered without a key: a supervisor has none. It tells nothing but the state."""

_AUTHORITY = re.compile(r"[A-Za-z0-9._-]+(:[0-9]+)?|\[[0-9A-Fa-f:.]+\](:[0-9]+)?", re.ASCII)


class Keys:
    """The keys that open the server. Without any, every caller is let in."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [_digest(key.encode()) for key in keys]

    def holder(self, authorization: bytes | None) -> str | None:
        """A name for the caller that is the same for the same key, '' where no keys are set, or ``None``.

        All keys are compared, each in constant time, so that the time says nothing of them.
        """
        if not self._digests:
            return ""
        scheme, _, key = (authorization or b"").partition(b" ")
        given = _digest(key.strip())
        holder = None
        for digest in self._digests:
            if hmac.compare_digest(digest, given):
                holder = digest.hex()[:16]
        return holder if scheme.lower() == b"bearer" else None


def host_allowed(values: Sequence[bytes], settings: ServerSettings) -> bool:
    """Whether a request was meant for this server: a page from elsewhere can make its name point here.

    Loopback names always count, the name in the settings and those allowed there too. A server that can be
    reached from outside takes numeric addresses as well: no one can rebind those.
    """
    if len(values) != 1:
        return False
    host = _host_of("//" + values[0].decode("latin-1"))
    if host is None:
        return False
    named = {name.lower() for name in (settings.host.strip("[]"), *settings.hosts)}
    return is_local_name(host) or host in named or (not settings.is_local and _is_number(host))


def origin_allowed(origin: str, settings: ServerSettings) -> bool:
    """Whether a page may call: one of this machine, or one that the settings name."""
    if any(_matches(origin, allowed) for allowed in settings.origins):
        return True
    host = _host_of(origin)
    return host is not None and origin.startswith(("http://", "https://")) and is_local_name(host)


def _matches(origin: str, allowed: str) -> bool:
    """Whether ``origin`` is the one allowed; ``*`` in it stands for anything but a slash, alone for all."""
    if allowed == "*":
        return True
    pattern = "[^/]*".join(map(re.escape, allowed.split("*")))
    return re.fullmatch(pattern, origin) is not None


def _host_of(url: str) -> str | None:
    """The host of ``scheme://host[:port]`` and nothing more; ``None`` for anything else."""
    authority = url.partition("//")[2]
    if not _AUTHORITY.fullmatch(authority):
        return None
    try:
        parts = urlsplit("//" + authority)
        parts.port  # noqa: B018  # raises for a port that is none
    except ValueError:
        return None
    return parts.hostname


def _is_number(host: str) -> bool:
    from ipaddress import ip_address

    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
