"""What a source and the store tell each other while a file is on its way: bytes, progress, why it stopped."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol


class Progress(Protocol):
    """Who is told how a long piece of work goes. Calls come in the order begin, update..., end."""

    def begin(self, what: str, total: int, done: int = 0, unit: str = "B") -> None: ...
    def update(self, done: int) -> None: ...
    def end(self) -> None: ...
    def notice(self, text: str) -> None: ...


class Silent:
    """A progress that nobody watches."""

    def begin(self, what: str, total: int, done: int = 0, unit: str = "B") -> None:
        pass

    def update(self, done: int) -> None:
        pass

    def end(self) -> None:
        pass

    def notice(self, text: str) -> None:
        pass


class SourceError(Exception):
    """This source can't give the file; another one may. The text is a clause without a full stop."""


class UnreachableError(SourceError):
    """There was no answer. Where some of the file has come already, trying again makes sense."""


class InterruptedTransferError(SourceError):
    """The transfer stopped, or the server asked to come back later; ``retry_after`` is in seconds."""

    def __init__(self, text: str, retry_after: float | None = None) -> None:
        super().__init__(text)
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class ByteStream:
    """The bytes of a file from offset ``start`` on, which is at most the offset that was asked for.

    ``action`` is what reading them does, for the progress bar; ``resumable`` says that opening it again
    may bring the rest where they end too early; ``total`` is the size of the whole file and ``etag``
    names its version, where they are stated.
    """

    start: int
    chunks: Iterator[bytes]
    action: str
    resumable: bool
    total: int | None = None
    etag: str | None = None
