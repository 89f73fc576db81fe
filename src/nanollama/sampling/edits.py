"""Edits: what bias and penalties change in logits, token by token, before one is chosen.

They touch the few tokens that a request names or has just seen, so they are lists, not vectors of the
vocabulary: a backend can make them where the logits are. llama.cpp's definitions are followed exactly, so
that settings carry over.
"""

from array import array
from collections import Counter
from collections.abc import Collection, Sequence
from math import inf

import numpy as np
from numpy.typing import NDArray

from nanollama.types import SamplingParams

NO_PENALTIES = (None, None, None)


class Edits:
    """The edits of some rows of logits, row by row, each token of a row once.

    Row ``r`` has the edits ``begins[r] .. begins[r + 1]`` (int64) and the ``factors`` repeat, frequency and
    presence (three float32). Edit ``i`` is of token ``token_ids[i]`` (int32), which occurred ``times[i]``
    times (float32) and has a ``bias[i]`` (float32). To its logit

    1. ``bias`` is added;
    2. if it occurred, it is divided by ``repeat`` where it is positive, else multiplied (Keskar et al. 2019,
       CTRL); then ``times * frequency`` and ``presence`` are subtracted (as in OpenAI's API).

    All in float32 and in this order, so that every backend gets the same bits.
    """

    # Plain arrays: they are built between two steps, where ten calls of NumPy are as long as a layer.
    __slots__ = ("begins", "bias", "factors", "times", "token_ids")

    def __init__(self) -> None:
        self.begins = array("q", [0])
        self.token_ids = array("i")
        self.times = array("f")
        self.bias = array("f")
        self.factors = array("f")

    def __len__(self) -> int:
        return len(self.token_ids)

    def add_row(
        self, params: SamplingParams, context: Sequence[int], forbidden: Collection[int] = ()
    ) -> None:
        """Add what ``params`` ask for behind ``context``; ``forbidden`` tokens get the logit ``-inf``."""
        ids, times = _latest(params, context)
        if params.logit_bias or forbidden:
            biased = {**params.logit_bias, **dict.fromkeys(forbidden, -inf)}
            counts = {**dict.fromkeys(biased, 0), **dict(zip(ids, times, strict=True))}
            ids, times = list(counts), array("f", counts.values())
            self.bias.extend(biased.values())
        self.token_ids.fromlist(ids)
        self.times.extend(times)
        self.bias.frombytes(bytes(4 * (len(self.token_ids) - len(self.bias))))
        self.factors.extend(
            (params.repeat_penalty or 1.0, params.frequency_penalty or 0.0, params.presence_penalty or 0.0)
        )
        self.begins.append(len(self.token_ids))

    def rows(self) -> NDArray[np.int64]:
        """The row of each edit."""
        return np.repeat(np.arange(len(self.begins) - 1), np.diff(self.begins))


def _latest(params: SamplingParams, context: Sequence[int]) -> tuple[list[int], "array[float]"]:
    """The tokens that the penalties look back on, and how often each occurs; none if there are no penalties.

    Where only ``frequency`` would tell, each counts once: that is less to count.
    """
    if (params.repeat_penalty, params.frequency_penalty, params.presence_penalty) == NO_PENALTIES:
        return [], array("f")
    last = params.repeat_last_n
    latest = context if last is None else context[max(0, len(context) - last) :]
    if params.frequency_penalty:
        counts = Counter(latest)
        return list(counts), array("f", counts.values())
    ids = list(dict.fromkeys(latest))
    return ids, array("f", [1.0]) * len(ids)


def edited(logits: NDArray[np.float32], edits: Edits) -> NDArray[np.float32]:
    """A copy of ``logits`` ``[rows, vocab]`` with the edits made."""
    at = edits.rows(), np.frombuffer(edits.token_ids, np.int32)
    repeat, frequency, presence = np.frombuffer(edits.factors, np.float32).reshape(-1, 3)[at[0]].T
    times, bias = np.frombuffer(edits.times, np.float32), np.frombuffer(edits.bias, np.float32)
    out = logits.copy()
    biased = out[at] + bias
    repeated = np.where(biased > 0, biased / repeat, biased * repeat)
    out[at] = np.where(times > 0, repeated - times * frequency - presence, biased)
    return out
