"""The engine: a Request in, TokenEvents out, one request at a time over one backend.

The prompt runs in chunks, so that an interrupt is noticed; then one token a step. What a request leaves in
the cache is kept: the next one starts behind the prefix that both share, which makes the second turn of a
chat as quick as its new text.
"""

import secrets
from collections.abc import Iterator, Sequence
from itertools import takewhile
from operator import eq

import numpy as np

from nanollama.backends.ops import Backend, ModelInput, SequenceInput
from nanollama.errors import BackendError, ContextOverflowError
from nanollama.sampling.sampler import sample
from nanollama.types import FinishReason, Request, TokenEvent

PREFILL_CHUNK = 256


class Engine:
    """Runs requests on a backend. Not thread-safe."""

    def __init__(self, backend: Backend, n_ctx: int) -> None:
        self.backend = backend
        self.n_ctx = n_ctx
        self._cached: list[int] = []  # the tokens whose keys and values are in the cache, in order

    def run(self, request: Request) -> Iterator[TokenEvent]:
        """Generate until a stop id, ``max_tokens`` or the end of the window; closing the iterator stops.

        Raises:
            ContextOverflowError: the prompt leaves no room for a single token.
            BackendError: the model's logits are not finite.
        """
        context = list(request.prompt_ids)
        if len(context) >= self.n_ctx:
            raise ContextOverflowError(
                f"the prompt has {len(context)} tokens and the context window holds {self.n_ctx}, the answer "
                "included; shorten the prompt or use a larger --ctx"
            )
        seed = secrets.randbits(63) if request.sampling.seed is None else request.sampling.seed
        limit = min(request.max_tokens, self.n_ctx - len(context))
        n_cached = self._reuse(context)
        for n_generated in range(1, limit + 1):
            logits = self._compute(context)
            if not np.isfinite(logits.max()):
                raise BackendError(
                    "the model's output is not a number; try --dtype float32, and check the model file"
                )
            token_id = sample(logits, request.sampling, context, seed)
            context.append(token_id)
            finish: FinishReason | None = None
            if token_id in request.stop_ids:
                finish = "stop"
            elif n_generated == limit:
                finish = "length"
            yield TokenEvent(token_id, finish, n_cached if n_generated == 1 else 0)
            if finish is not None:
                return

    def score(self, token_ids: Sequence[int], first_row: int = 0) -> "np.typing.NDArray[np.float32]":
        """Logits ``[n - first_row, vocab]`` after each token from ``first_row`` on, from an empty cache."""
        self._cached = []
        rows = [
            self._step(token_ids[start : start + PREFILL_CHUNK], first_logit=max(0, first_row - start)).copy()
            for start in range(0, len(token_ids), PREFILL_CHUNK)
        ]
        return np.concatenate(rows)

    def _reuse(self, context: list[int]) -> int:
        """Keep what the cache holds of ``context``; at least its last token runs again, for its logits."""
        shared = sum(1 for _ in takewhile(bool, map(eq, self._cached, context[:-1])))
        del self._cached[shared:]
        return shared

    def _compute(self, context: list[int]) -> "np.typing.NDArray[np.float32]":
        """Run the tokens of ``context`` that are not cached yet; the logits ``[vocab]`` after the last."""
        while True:
            new = context[len(self._cached) : len(self._cached) + PREFILL_CHUNK]
            is_last = len(self._cached) + len(new) == len(context)
            logits = self._step(new, first_logit=len(new) - 1 if is_last else len(new))
            if is_last:
                return np.asarray(logits[0])

    def _step(self, new: Sequence[int], first_logit: int) -> "np.typing.NDArray[np.float32]":
        n_cached = len(self._cached)
        blocks = -(-(n_cached + len(new)) // self.backend.block_tokens)
        sequence = SequenceInput(len(new), n_cached, tuple(range(blocks)))
        batch = ModelInput(tuple(new), (sequence,), tuple(range(first_logit, len(new))))
        logits = self.backend.step(batch)
        self._cached.extend(new)
        return logits
