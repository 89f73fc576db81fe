"""The way to the network: a source of a file in, its bytes out; a question to the hub in, its JSON out.

This file speaks HTTP and ``wheels.py`` runs pip; nothing else opens a connection, and neither writes a model
file. The bytes are not trusted; ``download.py`` counts and hashes them. A Hugging Face token is sent to the
configured endpoint only, never to where that redirects, and nothing keeps cookies.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode, urljoin, urlsplit

from nanollama.store.catalogue import HubFile, Source, UrlFile
from nanollama.store.transfer import (
    ByteStream,
    InterruptedTransferError,
    Progress,
    SourceError,
    UnreachableError,
)
from nanollama.store.wheels import open_wheels

if TYPE_CHECKING:
    import ssl

    import httpx

_MAX_REDIRECTS = 5
_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})
_MAX_JSON_BYTES = 16 << 20
_LONGEST_JSON_S = 60.0
_LEAST_RATE = 1024
"""Bytes a second, over ``read_s``, below which a body counts as stalled."""


class HttpError(SourceError):
    """The server answered ``status``, and asking again would not change that."""

    def __init__(self, status: int) -> None:
        hint = "; a token in HF_TOKEN may be needed" if status in {401, 403} else ""
        super().__init__(f"it answered HTTP {status}{hint}")
        self.status = status


@dataclass(frozen=True, slots=True)
class FetchSettings:
    """Where the hub is and how long to wait, in seconds. ``first_answer_s`` bounds name look-up, connection,
    redirects and headers together, so that an unreachable hub costs no more than that; ``read_s`` is
    the longest silence in a body."""

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
    """Opens sources. One object may be used for any number of files, by several threads."""

    def __init__(self, settings: FetchSettings | None = None) -> None:
        self._settings = settings or FetchSettings.from_environment()
        self._tls: ssl.SSLContext | None = None

    def open(
        self, source: Source, start: int, scratch: Path, progress: Progress, stop: int | None = None
    ) -> AbstractContextManager[ByteStream]:
        """The bytes of ``source`` from ``start`` up to ``stop``, or from 0 where it can't skip.

        ``scratch`` is a folder for wheels on their way, which the caller removes. Raises ``SourceError``,
        also while the chunks are read, and ``InterruptedTransferError`` where trying again makes sense.
        """
        if isinstance(source, HubFile):
            path = f"{source.repo}/resolve/{source.revision}/{source.path}"
            return self._open(f"{self._hub()}/{quote(path)}", start, stop, self._settings.token)
        if isinstance(source, UrlFile):
            return self._open(source.url, start, stop, None, source.etag)
        return open_wheels(source, scratch, progress)

    def ask_hub(self, path: str, query: Mapping[str, str]) -> Any:
        """What the hub's API answers, as JSON of at most 16 MiB. Raises like ``open``."""
        url = f"{self._hub()}/{quote(path)}?{urlencode(query)}"
        deadline = time.monotonic() + _LONGEST_JSON_S
        content = bytearray()
        with self._open(url, 0, None, self._settings.token) as stream:
            for chunk in stream.chunks:
                content += chunk
                if len(content) > _MAX_JSON_BYTES:
                    raise SourceError(f"its answer is larger than {_MAX_JSON_BYTES >> 20} MiB")
                if time.monotonic() > deadline:
                    raise SourceError(f"its answer took longer than {_LONGEST_JSON_S:g} seconds")
        try:
            return json.loads(content)
        except (ValueError, RecursionError):
            raise SourceError("its answer is not JSON") from None

    def inspect(self, url: str, count: int) -> tuple[bytes, int | None, str | None]:
        """The first ``count`` bytes at ``url``, the size of the whole file and its ETag, where stated."""
        content = b""
        with self._open(url, 0, count, None) as stream:
            for chunk in stream.chunks:
                content += chunk
                if len(content) >= count:
                    break
            return content[:count], stream.total, stream.etag

    def _client(self, timeout: "httpx.Timeout") -> "httpx.Client":
        """A client for one request and its redirects. Only the certificates, slow to read, are shared."""
        import httpx

        try:
            self._tls = self._tls or httpx.create_ssl_context()
            return httpx.Client(timeout=timeout, verify=self._tls, follow_redirects=False)
        except (ImportError, ValueError, OSError, httpx.InvalidURL):
            raise SourceError("the proxy or certificate settings of the environment can't be used") from None

    def _hub(self) -> str:
        if self._settings.hub_offline:
            raise SourceError("HF_HUB_OFFLINE is set")
        return self._settings.endpoint

    @contextmanager
    def _open(
        self, url: str, start: int, stop: int | None, token: str | None, etag: str | None = None
    ) -> Iterator[ByteStream]:
        import httpx

        settings = self._settings
        headers = {"Accept-Encoding": "identity", "User-Agent": "nanollama"}
        if start or stop is not None:
            headers["Range"] = f"bytes={start}-{'' if stop is None else stop - 1}"
            if etag:
                headers["If-Range"] = etag
        timeout = httpx.Timeout(settings.read_s, connect=settings.first_answer_s)
        with self._client(timeout) as client:
            response = _within(settings.first_answer_s, lambda: _get(client, url, headers, token))
            try:
                first, total = _accepted_span(response, start)
                seen = response.headers.get("ETag")
                if etag and seen and seen != etag:
                    raise SourceError("the file there has changed")
                yield ByteStream(first, _body(response, settings.read_s), "downloading", True, total, seen)
            finally:
                response.close()


def _get(client: "httpx.Client", url: str, headers: Mapping[str, str], token: str | None) -> "httpx.Response":
    """The response to ``url`` with its body unread, after at most five redirects that are safe to follow."""
    import httpx

    origin = urlsplit(url)
    for _ in range(_MAX_REDIRECTS + 1):
        here = urlsplit(url)
        sent = dict(headers)
        same_place = (here.scheme, here.netloc) == (origin.scheme, origin.netloc)
        if token and same_place and (here.scheme == "https" or is_internal(here.hostname)):
            sent["Authorization"] = f"Bearer {token}"
        try:
            response = client.send(client.build_request("GET", url, headers=sent), stream=True)
        except httpx.InvalidURL:
            raise SourceError("its address is not a valid URL; check HF_ENDPOINT") from None
        except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
            raise InterruptedTransferError("the connection broke") from None
        except httpx.TransportError:
            raise UnreachableError("it could not be reached") from None
        client.cookies.clear()
        if not response.is_redirect:
            return response
        response.close()
        url = urljoin(url, response.headers.get("Location", ""))
        target = urlsplit(url)
        if target.scheme != "https" and (target.scheme != "http" or here.scheme == "https"):
            raise SourceError("it redirects to an address that is not encrypted")
        if is_internal(target.hostname) and not is_internal(origin.hostname):
            raise SourceError("it redirects to an address inside the local network")
    raise SourceError(f"it redirects more than {_MAX_REDIRECTS} times")


def _accepted_span(response: "httpx.Response", start: int) -> tuple[int, int | None]:
    """Where the body of ``response`` begins in the file, and the file's size; raises if it is no body."""
    status = response.status_code
    if status in _BUSY:
        raise InterruptedTransferError(
            f"it is busy (HTTP {status})", _seconds(response.headers.get("Retry-After", ""))
        )
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise SourceError("it sends the file compressed, which was not asked for")
    if status == 200:
        return 0, _number(response.headers.get("Content-Length", ""))
    if status == 206:
        unit, _, span = response.headers.get("Content-Range", "").partition(" ")
        first = _number(span.partition("-")[0])
        if unit == "bytes" and first is not None and first <= start:
            return first, _number(span.partition("/")[2])
        raise SourceError("it sent another part of the file than the one asked for")
    if status == 416:
        raise SourceError("the file there is shorter than expected")
    raise HttpError(status)


def _number(text: str) -> int | None:
    """The size that a header states, if it is one: at most 18 digits, below what a file can have."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else None


def _seconds(retry_after: str) -> float | None:
    """How long a ``Retry-After`` asks to wait: it states seconds or a date (RFC 9110, 10.2.3)."""
    from email.utils import parsedate_to_datetime

    if (seconds := _number(retry_after)) is not None:
        return float(seconds)
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _body(response: "httpx.Response", read_s: float) -> Iterator[bytes]:
    """The chunks as they come. A body that drips counts as a broken connection, like one that is silent."""
    import httpx

    since, received = time.monotonic(), 0
    try:
        for chunk in response.iter_raw():
            yield chunk
            received += len(chunk)
            if (now := time.monotonic()) - since >= read_s:
                if received < _LEAST_RATE * read_s:
                    raise InterruptedTransferError("it sends too slowly")
                since, received = now, 0
    except httpx.TransportError:
        raise InterruptedTransferError("the connection broke") from None


def is_internal(host: str | None) -> bool:
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
        raise UnreachableError(f"it did not answer within {seconds:g} seconds") from None
    if isinstance(result, BaseException):
        raise result
    return result
