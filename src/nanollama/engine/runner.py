"""The runner: a StepPlan in, one backend step, and a token for every sequence that reached its end out.

This is where sequences meet tensors. Each row has its own sampling parameters and seed; nothing in a row's
result depends on the other rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from nanollama.backends.ops import Backend, ModelInput, SequenceInput
from nanollama.engine.scheduler import ScheduledSequence, StepPlan
from nanollama.engine.sequence import Sequence
from nanollama.errors import BackendError, NanollamaError
from nanollama.sampling.edits import Edits
from nanollama.sampling.processors import Logits
from nanollama.sampling.sampler import choose, n_candidates, sample
from nanollama.types import Logprob

MAX_CANDIDATES = 256
"""A request that wants more of the highest logits gets all of them: sorting few is what makes it fast."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """What a step gave one sequence: a token, its log-probability if asked for, or an error that ends it."""

    token_id: int
    logprob: Logprob | None = None
    error: NanollamaError | None = None


class Runner:
    """Runs plans on a backend. Log-probabilities of prompts collect here until the last is known."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self._prompt_logprobs: dict[int, list[Logprob]] = {}

    def run(self, plan: StepPlan) -> Mapping[int, Sampled]:
        """Run one step; the samples by sequence id."""
        batch, rows = _model_input(plan)
        if (k := _candidates(plan, self.backend.spec.vocab_size)) is not None:
            return self._chosen([s.sequence for s in plan.scheduled if s.wants_logits], batch, k)
        logits = self.backend.step(batch)
        sampled: dict[int, Sampled] = {}
        for scheduled, (first, last) in zip(plan.scheduled, rows, strict=True):
            sequence = scheduled.sequence
            if sequence.request.prompt_logprobs is not None and first < last:
                self._score_prompt(sequence, logits[first:last])
            if scheduled.wants_logits:
                sampled[sequence.id] = _sampled(sequence, logits[last - 1])
        return sampled

    def _chosen(self, sequences: list[Sequence], batch: ModelInput, k: int) -> Mapping[int, Sampled]:
        """The samples where nobody looks past the ``k`` highest logits: the rest stay on the device."""
        edits = Edits()
        for s in sequences:
            edits.add_row(s.request.sampling, s.token_ids, _forbidden(s, self.backend.spec.vocab_size))
        ids, logits = self.backend.best(batch, k, edits)
        return {s.id: _picked(s, ids[row], logits[row]) for row, s in enumerate(sequences)}

    def take_prompt_logprobs(self, sequence: Sequence) -> tuple[Logprob, ...]:
        """The log-probabilities of the prompt's tokens but the first; known once the prompt has run."""
        return tuple(self._prompt_logprobs.pop(sequence.id, ()))

    def forget(self, sequence_id: int) -> None:
        """Drop what was collected for a sequence that ended early."""
        self._prompt_logprobs.pop(sequence_id, None)

    def _score_prompt(self, sequence: Sequence, logits: NDArray[np.float32]) -> None:
        """Each row predicts the token behind it; the prompt's last row predicts none of it."""
        known = self._prompt_logprobs.setdefault(sequence.id, [])
        for at, row in enumerate(logits, sequence.n_cached + 1):
            if at <= len(known):
                continue  # known from before the sequence was preempted
            if at >= sequence.n_prompt:
                return
            known.append(logprob_of(row, sequence.token_ids[at], sequence.request.prompt_logprobs or 0))


def logprob_of(logits: Logits, token_id: int, n_top: int) -> Logprob:
    """The log-probability of one token under ``logits [vocab]``, and the ``n_top`` likeliest."""
    largest = float(logits.max())
    log_total = largest + float(np.log(np.exp(logits.astype(np.float64) - largest).sum()))
    top: tuple[tuple[int, float], ...] = ()
    if n_top:
        best = np.argpartition(-logits, n_top)[:n_top]
        best = best[np.lexsort((best, -logits[best]))]
        top = tuple((int(i), float(logits[i]) - log_total) for i in best)
    return Logprob(token_id, float(logits[token_id]) - log_total, top)


def _model_input(plan: StepPlan) -> tuple[ModelInput, list[tuple[int, int]]]:
    """The step as the backend sees it, and for each sequence the range of logit rows that are its own."""
    token_ids: list[int] = []
    sequences: list[SequenceInput] = []
    logit_rows: list[int] = []
    ranges: list[tuple[int, int]] = []
    for scheduled in plan.scheduled:
        s, n_new = scheduled.sequence, scheduled.n_new
        wanted = _wanted_rows(scheduled)
        ranges.append((len(logit_rows), len(logit_rows) + wanted))
        logit_rows += range(len(token_ids) + n_new - wanted, len(token_ids) + n_new)
        token_ids += s.token_ids[s.n_cached : s.n_cached + n_new]
        sequences.append(SequenceInput(n_new, s.n_cached, tuple(s.block_table)))
    return ModelInput(tuple(token_ids), tuple(sequences), tuple(logit_rows), plan.copies), ranges


def _candidates(plan: StepPlan, vocab_size: int) -> int | None:
    """How many of a row's highest logits are enough for every sequence; ``None`` if one wants them all."""
    requests = [scheduled.sequence.request for scheduled in plan.scheduled]
    if any((request.logprobs, request.prompt_logprobs) != (None, None) for request in requests):
        return None
    wanted = [n_candidates(request.sampling) for request in requests]
    most = max((n for n in wanted if n is not None), default=1)
    return None if None in wanted or most > MAX_CANDIDATES else min(most, vocab_size)


def _forbidden(sequence: Sequence, vocab_size: int) -> list[int]:
    """The tokens that may not come next. A file may name an end that its model does not have."""
    request = sequence.request
    if sequence.n_generated >= request.min_tokens:
        return []
    return [token_id for token_id in request.stop_ids if token_id < vocab_size]


def _not_a_number() -> BackendError:
    return BackendError("the model's output is not a number; try --dtype float32, and check the model file")


def _wanted_rows(scheduled: ScheduledSequence) -> int:
    if scheduled.sequence.request.prompt_logprobs is not None:
        return scheduled.n_new
    return int(scheduled.wants_logits)


def _picked(sequence: Sequence, ids: NDArray[np.integer], logits: Logits) -> Sampled:
    """The next token of a sequence, one of its likeliest. An error here ends this sequence alone."""
    try:
        if not isfinite(logits[0]):
            raise _not_a_number()
        return Sampled(choose(ids, logits, sequence.request.sampling, sequence.n_tokens, sequence.seed))
    except NanollamaError as error:
        return Sampled(-1, error=error)


def _sampled(sequence: Sequence, logits: Logits) -> Sampled:
    """The next token of a sequence, of all there are. An error here ends this sequence alone."""
    request = sequence.request
    try:
        if not np.isfinite(logits.max()):
            raise _not_a_number()
        token_id = sample(
            logits,
            request.sampling,
            sequence.token_ids,
            sequence.seed,
            forbidden=_forbidden(sequence, len(logits)),
        )
    except NanollamaError as error:
        return Sampled(-1, error=error)
    logprob = None if request.logprobs is None else logprob_of(logits, token_id, request.logprobs)
    return Sampled(token_id, logprob)
