"""The sampler: one row of logits and a request's SamplingParams in, one token id out.

The order is llama.cpp's: bias, penalties, top-k, top-p, min-p, temperature, then a draw. The draw depends on
nothing but the logits, the parameters, and (seed, position).
"""

from collections.abc import Sequence

import numpy as np

from nanollama.sampling.processors import (
    Logits,
    apply_bias,
    apply_penalties,
    min_p_count,
    softmax,
    top_k,
    top_p_count,
)
from nanollama.sampling.random import uniform
from nanollama.types import SamplingParams


def takes_likeliest(params: SamplingParams) -> bool:
    """Whether :func:`sample` returns the token with the highest logit, whatever the context."""
    penalties = (params.repeat_penalty, params.frequency_penalty, params.presence_penalty)
    return params.temperature == 0 and not params.logit_bias and penalties == (None, None, None)


def sample(logits: Logits, params: SamplingParams, context: Sequence[int], seed: int) -> int:
    """Choose the token that follows ``context`` (prompt and generated ids) given its logits ``[vocab]``."""
    if params.logit_bias:
        logits = apply_bias(logits, params.logit_bias)
    repeat, frequency, presence = params.repeat_penalty, params.frequency_penalty, params.presence_penalty
    if not (repeat is None and frequency is None and presence is None):
        last = params.repeat_last_n
        latest = context if last is None else context[max(0, len(context) - last) :]
        logits = apply_penalties(
            logits, latest, 1.0 if repeat is None else repeat, frequency or 0.0, presence or 0.0
        )
    if params.temperature == 0:
        return int(np.argmax(logits))
    ids = top_k(logits, params.top_k)
    candidates = logits[ids]
    if params.top_p is not None:
        candidates = candidates[: top_p_count(candidates, params.top_p)]
    if params.min_p is not None:
        candidates = candidates[: min_p_count(candidates, params.min_p)]
    cumulative = np.cumsum(softmax(candidates / np.float32(params.temperature)))
    choice = int(np.searchsorted(cumulative, uniform(seed, len(context)) * cumulative[-1], side="right"))
    return int(ids[min(choice, len(candidates) - 1)])
