"""One request's life in the engine: its tokens, and how many of them are in which cache blocks.

Comes from a Request; the scheduler and the block manager move it on, the engine reads it. Invariants:
``token_ids`` and, while it runs, ``block_table`` only grow; ``n_cached`` is smaller than ``n_tokens``, so
there is always a token to compute; a sequence that does not run holds no blocks.
"""

from dataclasses import dataclass, field
from enum import Enum

from nanollama.types import Request


class Status(Enum):
    """Where a sequence is. A preempted one waits again."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(slots=True, eq=False)
class Sequence:
    """A request on its way through the engine. Touched by the engine thread only.

    ``token_ids`` is the prompt and what was generated: the next token is drawn with ``seed`` at position
    ``len(token_ids)``, whatever was preempted before. The keys and values of its first ``n_cached`` tokens
    lie in the blocks of ``block_table``. ``block_keys`` names its full blocks (see ``blocks.py``).
    ``n_computed`` is the largest ``n_cached`` so far, ``n_reused`` the prompt tokens that the cache held when
    the sequence was first admitted.
    """

    id: int
    request: Request
    arrival: float
    seed: int
    token_ids: list[int] = field(init=False)
    block_table: list[int] = field(default_factory=list, init=False)
    block_keys: list[bytes] = field(default_factory=list, init=False)
    status: Status = field(default=Status.WAITING, init=False)
    n_cached: int = field(default=0, init=False)
    n_computed: int = field(default=0, init=False)
    n_reused: int = field(default=0, init=False)
    n_preempted: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.token_ids = list(self.request.prompt_ids)

    @property
    def order(self) -> tuple[int, float, int]:
        """Sorts sequences: who comes first is served first, who comes last is preempted first."""
        return self.request.priority, self.arrival, self.id

    @property
    def n_prompt(self) -> int:
        return len(self.request.prompt_ids)

    @property
    def n_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def n_generated(self) -> int:
        return len(self.token_ids) - len(self.request.prompt_ids)

    @property
    def n_uncached(self) -> int:
        """Tokens still to compute: 1 while decoding."""
        return len(self.token_ids) - self.n_cached

    @property
    def max_reusable(self) -> int:
        """How many tokens may be taken from the cache instead of being computed.

        The last token is always computed, for its logits. With ``prompt_logprobs`` the logits of every prompt
        token are wanted: only what this sequence computed before it was preempted counts.
        """
        scored_only = self.request.prompt_logprobs is not None
        return min(self.n_tokens - 1, self.n_computed) if scored_only else self.n_tokens - 1
