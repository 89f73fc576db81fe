"""Perplexity of a model on a text, by llama-perplexity's convention, so that the figures compare.

The text is cut into windows of ``n_ctx`` tokens that do not overlap; the first token of a window is replaced
by BOS if the model adds one; only the second half of a window is scored, each token with at least ``n_ctx /
2`` tokens before it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from nanollama.errors import UsageError
from nanollama.llm import LLM


@dataclass(frozen=True, slots=True)
class Perplexity:
    """``exp`` of the mean negative log-likelihood over ``tokens`` scored tokens in ``windows`` windows."""

    perplexity: float
    tokens: int
    windows: int


def perplexity(
    llm: LLM,
    text: str,
    *,
    n_ctx: int = 512,
    max_windows: int | None = None,
    on_window: Callable[[int, int, float], None] | None = None,
) -> Perplexity:
    """Score ``text``. ``on_window(done, total, perplexity so far)`` is called after each window.

    Raises:
        UsageError: ``n_ctx`` is too small or larger than the model's context, or the text is shorter than one
        window.
    """
    if not 8 <= n_ctx <= llm.n_ctx:
        raise UsageError(f"n_ctx is {n_ctx}; expected 8 to {llm.n_ctx}, the context window of this model")
    ids = llm.tokenizer.encode(text, add_special=True)
    windows = len(ids) // n_ctx
    if windows < 1:
        raise UsageError(f"the text has {len(ids)} tokens; one window needs {n_ctx} (--n-ctx)")
    if max_windows is not None:
        windows = min(windows, max_windows)
    total, tokens = 0.0, 0
    for done in range(windows):
        window = ids[done * n_ctx : (done + 1) * n_ctx]
        if llm.tokenizer.adds_bos and llm.tokenizer.bos_id is not None:
            window[0] = llm.tokenizer.bos_id
        first = n_ctx // 2
        # The logits after token i predict token i + 1, so the last row predicts nothing in this window.
        logits = llm.engine.score(window, first_row=first)[:-1]
        total += negative_log_likelihood(logits, window[first + 1 :])
        tokens += n_ctx - first - 1
        if on_window is not None:
            on_window(done + 1, windows, math.exp(total / tokens))
    return Perplexity(math.exp(total / tokens), tokens, windows)


def negative_log_likelihood(logits: "np.typing.NDArray[np.float32]", targets: list[int]) -> float:
    """The sum over rows of ``-log softmax(logits)[target]``, in float64 where sums are long."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    chosen = np.take_along_axis(shifted, np.asarray(targets)[:, None], axis=1)[:, 0]
    np.exp(shifted, out=shifted)
    return float(np.sum(np.log(shifted.sum(axis=1, dtype=np.float64)) - chosen))
