"""The sampler: one row of logits and a request's SamplingParams in, one token id out.

The order is llama.cpp's: bias, penalties, top-k, top-p, min-p, temperature, then a draw. The draw depends on
nothing but the logits, the parameters, and (seed, position).
"""

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from nanollama.sampling.edits import Edits, edited
from nanollama.sampling.processors import Logits, min_p_count, softmax, top_k, top_p_count
from nanollama.sampling.random import uniform
from nanollama.types import SamplingParams


def n_candidates(params: SamplingParams) -> int | None:
    """How many of the highest logits :func:`choose` looks at; ``None``: all."""
    return 1 if params.temperature == 0 else params.top_k


def sample(
    logits: Logits,
    params: SamplingParams,
    context: Sequence[int],
    seed: int,
    *,
    forbidden: Collection[int] = (),
) -> int:
    """Choose the token that follows ``context`` (prompt and generated ids) given its logits ``[vocab]``."""
    edits = Edits()
    edits.add_row(params, context, forbidden)
    if edits:
        (logits,) = edited(logits[None], edits)
    if params.temperature == 0:
        return int(np.argmax(logits))
    ids = top_k(logits, params.top_k)
    return choose(ids, logits[ids], params, len(context), seed)


def choose(ids: NDArray[np.integer], logits: Logits, params: SamplingParams, position: int, seed: int) -> int:
    """Choose among the tokens ``ids`` with the highest (edited) logits, highest first."""
    if params.temperature == 0:
        return int(ids[0])
    candidates = logits[: params.top_k]
    if params.top_p is not None:
        candidates = candidates[: top_p_count(candidates, params.top_p)]
    if params.min_p is not None:
        candidates = candidates[: min_p_count(candidates, params.min_p)]
    cumulative = np.cumsum(softmax(candidates / np.float32(params.temperature)))
    choice = int(np.searchsorted(cumulative, uniform(seed, position) * cumulative[-1], side="right"))
    return int(ids[min(choice, len(candidates) - 1)])
