"""The steps between logits and a choice: pure functions from logits to logits.

Filters work on candidates sorted by falling logit and return how many of them stay. llama.cpp's definitions
are followed exactly, so that settings carry over. What changes single logits is in ``edits.py``.
"""

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]

GROUP = 64
"""Logits of which :func:`top_k` first takes the maximum."""


def softmax(logits: Logits) -> NDArray[np.float64]:
    """Probabilities of ``logits`` in float64."""
    shifted = np.exp(logits.astype(np.float64) - np.max(logits))
    return np.asarray(shifted / shifted.sum())


def top_k(logits: Logits, k: int | None) -> NDArray[np.int64]:
    """Ids of the ``k`` highest logits (all for ``None``), highest first, equal ones by id."""
    candidates = np.arange(len(logits)) if k is None else np.flatnonzero(logits >= _top_k_bound(logits, k))
    order = np.argsort(-logits[candidates], kind="stable")
    return np.asarray(candidates[order][:k])


def _top_k_bound(logits: Logits, k: int) -> np.float32:
    """A number that the ``k`` highest logits reach, and few others do.

    The k-th highest of the maxima of many groups will do: k groups have a logit at least that high. One pass
    in vectors finds the maxima, and only they are partitioned.
    """
    n_groups = len(logits) // GROUP
    high = logits[: n_groups * GROUP].reshape(GROUP, n_groups).max(axis=0) if k <= n_groups else logits
    at = max(0, len(high) - k)
    return np.float32(np.partition(high, at)[at])


def top_p_count(logits: Logits, p: float) -> int:
    """How many of the sorted candidates make up probability ``p`` (Holtzman et al. 2020), at least one."""
    return int(np.searchsorted(np.cumsum(softmax(logits)), p)) + 1


def min_p_count(logits: Logits, p: float) -> int:
    """How many of the sorted candidates are at least ``p`` times as likely as the first (Nguyen 2024)."""
    return int(np.count_nonzero(logits >= logits[0] + np.log(p)))
