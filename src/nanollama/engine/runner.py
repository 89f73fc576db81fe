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
from nanollama.sampling.processors import Logits, apply_bias
from nanollama.sampling.sampler import sample, takes_likeliest
from nanollama.types import Logprob


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
        if all(map(_is_greedy, plan.scheduled)):
            return self._likeliest(plan, batch)
        logits = self.backend.step(batch)
        sampled: dict[int, Sampled] = {}
        for scheduled, (first, last) in zip(plan.scheduled, rows, strict=True):
            sequence = scheduled.sequence
            if sequence.request.prompt_logprobs is not None and first < last:
                self._score_prompt(sequence, logits[first:last])
            if scheduled.wants_logits:
                sampled[sequence.id] = _sampled(sequence, logits[last - 1])
        return sampled

    def _likeliest(self, plan: StepPlan, batch: ModelInput) -> Mapping[int, Sampled]:
        """The samples where nobody looks at the logits, which then need not leave the device."""
        wanting = [scheduled.sequence.id for scheduled in plan.scheduled if scheduled.wants_logits]
        token_ids, logits = self.backend.greedy(batch)
        return {
            sequence_id: Sampled(token_id) if isfinite(logit) else Sampled(-1, error=_not_a_number())
            for sequence_id, token_id, logit in zip(wanting, token_ids.tolist(), logits.tolist(), strict=True)
        }

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


def _is_greedy(scheduled: ScheduledSequence) -> bool:
    """Whether a sequence's next token is the likeliest one, and nothing else is asked of its logits."""
    request = scheduled.sequence.request
    looks = (request.logprobs, request.prompt_logprobs) != (None, None) or request.min_tokens
    return not looks and takes_likeliest(request.sampling)


def _not_a_number() -> BackendError:
    return BackendError("the model's output is not a number; try --dtype float32, and check the model file")


def _wanted_rows(scheduled: ScheduledSequence) -> int:
    if scheduled.sequence.request.prompt_logprobs is not None:
        return scheduled.n_new
    return int(scheduled.wants_logits)


def _sampled(sequence: Sequence, logits: Logits) -> Sampled:
    """The next token of a sequence. An error here ends this sequence alone."""
    request = sequence.request
    try:
        if not np.isfinite(logits.max()):
            raise _not_a_number()
        choosable = logits
        if sequence.n_generated < request.min_tokens and request.stop_ids:
            choosable = apply_bias(logits, dict.fromkeys(request.stop_ids, float("-inf")))
        token_id = sample(choosable, request.sampling, sequence.token_ids, sequence.seed)
    except NanollamaError as error:
        return Sampled(-1, error=error)
    logprob = None if request.logprobs is None else logprob_of(logits, token_id, request.logprobs)
    return Sampled(token_id, logprob)
