"""Perplexity against a definition written out with the reference decoder."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from nanollama import LLM, reference
from nanollama.errors import UsageError
from nanollama.model.checkpoint import open_gguf
from nanollama.perplexity import negative_log_likelihood, perplexity

TEXT = "Once upon a time there was a little girl named Lily. She loved to play outside in the park. " * 12
N_CTX = 64


@pytest.fixture(scope="module")
def stories(stories_path: Path) -> Iterator[LLM]:
    with LLM(str(stories_path), backend="torch", device="cpu") as llm:
        yield llm


def test_perplexity_follows_its_definition(stories: LLM, stories_path: Path) -> None:
    checkpoint = open_gguf(stories_path)
    params = {name: torch.from_numpy(t.float32()) for name, t in checkpoint.tensors.items()}
    ids = stories.tokenizer.encode(TEXT, add_special=True)
    losses = []
    for start in range(0, 3 * N_CTX, N_CTX):
        window = [stories.tokenizer.bos_id, *ids[start + 1 : start + N_CTX]]
        log_p = reference.logits(checkpoint.spec, params, window).log_softmax(-1)
        losses += [-float(log_p[i - 1, window[i]]) for i in range(N_CTX // 2 + 1, N_CTX)]
    checkpoint.close()
    result = perplexity(stories, TEXT, n_ctx=N_CTX, max_windows=3)
    assert result.perplexity == pytest.approx(math.exp(np.mean(losses)), rel=1e-4)
    assert (result.tokens, result.windows) == (3 * (N_CTX // 2 - 1), 3)


def test_every_window_is_reported(stories: LLM) -> None:
    seen: list[tuple[int, int, float]] = []
    result = perplexity(stories, TEXT, n_ctx=N_CTX, on_window=lambda *args: seen.append(args))
    assert [done for done, _, _ in seen] == list(range(1, result.windows + 1))
    assert seen[-1][2] == result.perplexity


@pytest.mark.parametrize(("text", "n_ctx"), [("too short", 64), (TEXT, 4), (TEXT, 1 << 20)])
def test_windows_that_can_not_be_are_refused(stories: LLM, text: str, n_ctx: int) -> None:
    with pytest.raises(UsageError):
        perplexity(stories, text, n_ctx=n_ctx)


def test_uniform_logits_cost_the_log_of_the_vocabulary() -> None:
    assert negative_log_likelihood(np.zeros((3, 50), dtype=np.float32), [0, 7, 49]) == pytest.approx(
        3 * math.log(50)
    )
