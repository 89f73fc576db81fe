"""What the server needs to know of a request for answers, whichever API it came by.

Each API has a class of jobs: it starts the answers, and turns their events into that API's chunks. Who waits
for what, and for how long, is decided once, in :mod:`nanollama.server.generation`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from nanollama.errors import NanollamaError
from nanollama.server.problems import JSON
from nanollama.types import Completion, TextEvent

if TYPE_CHECKING:
    from nanollama.answer import Answer
    from nanollama.llm import LLM


@dataclass(frozen=True, slots=True)
class Keep:
    """How long a model stays in memory once nobody uses it; ``None`` for ever."""

    seconds: float | None


@dataclass(frozen=True, slots=True)
class Opened:
    """A job whose answers run. Times are in seconds, ``arrived`` by ``time.monotonic``."""

    id: str
    version: str
    arrived: float
    load_s: float
    llm: "LLM"
    prompt_ids: Sequence[tuple[int, ...]]


class Reply(Protocol):
    """Makes the chunks of all choices, in the order in which their events come."""

    @property
    def completions(self) -> Mapping[int, Completion]:
        """What is complete."""
        ...

    def chunks(self, index: int, event: TextEvent) -> list[JSON]:
        """What one event becomes."""
        ...

    def spelled(self, index: int, event: TextEvent) -> list[bytes]:
        """The JSON of each of these chunks. Of the two methods, an event is given to one."""
        ...

    def closing(self) -> list[JSON]:
        """What follows the last event."""
        ...

    def fold(self, chunks: Sequence[JSON]) -> JSON:
        """The whole reply that all chunks make up."""
        ...


class Job(Protocol):
    """A checked request for answers."""

    @property
    def model(self) -> str: ...

    @property
    def streams(self) -> bool:
        """Whether the answer is to be sent while it is made."""
        ...

    @property
    def choices(self) -> int:
        """How many answers are asked for."""
        ...

    @property
    def keep(self) -> Keep | None:
        """How long the model is to stay afterwards; ``None`` leaves it to the server."""
        ...

    @property
    def n_ctx(self) -> int | None:
        """The context window that the answers need; ``None`` takes the model's."""
        ...

    def start(self, llm: "LLM", salt: str) -> "list[Answer]":
        """Render, tokenize and submit; takes a while for a long prompt.

        Raises:
            NanollamaError: the request does not suit the model; nothing of it runs then.
        """
        ...

    def reply(self, opened: Opened) -> Reply: ...

    def explain(self, error: NanollamaError) -> Exception:
        """What the client is told of ``error``."""
        ...
