"""The engine over a toy model: limits, reuse of what is cached, and what happens when it is interrupted."""

import numpy as np
import pytest

from nanollama.backends.ops import ModelInput
from nanollama.backends.torch_backend import TorchBackend
from nanollama.engine.engine import PREFILL_CHUNK, Engine
from nanollama.errors import BackendError, ContextOverflowError
from nanollama.types import Request, SamplingParams
from toys import make_toy

GREEDY = SamplingParams()


class CountingBackend(TorchBackend):
    """The torch backend, with a record of how many tokens each step ran."""

    def step(self, batch: ModelInput) -> np.ndarray:
        self.steps = [*getattr(self, "steps", []), len(batch.token_ids)]
        return super().step(batch)


@pytest.fixture
def engine() -> Engine:
    toy = make_toy("llama")
    backend = CountingBackend(toy.spec, toy.tensors, device="cpu", dtype="float32", cache_tokens=512)
    return Engine(backend, n_ctx=512)


def request(ids: tuple[int, ...], max_tokens: int = 8, stop_ids: frozenset[int] = frozenset()) -> Request:
    return Request(ids, GREEDY, max_tokens, stop_ids)


def tokens(engine: Engine, r: Request) -> list[int]:
    return [e.token_id for e in engine.run(r)]


def test_generation_ends_with_length_at_max_tokens(engine: Engine) -> None:
    events = list(engine.run(request((1, 2, 3), max_tokens=5)))
    assert [e.finish_reason for e in events] == [None] * 4 + ["length"]


def test_generation_ends_with_stop_at_a_stop_id(engine: Engine) -> None:
    free = tokens(engine, request((1, 2, 3)))
    events = list(engine.run(request((1, 2, 3), stop_ids=frozenset([free[3]]))))
    assert [e.token_id for e in events] == free[: free.index(free[3]) + 1]
    assert events[-1].finish_reason == "stop"


def test_generation_ends_where_the_context_window_ends(engine: Engine) -> None:
    events = list(engine.run(request(tuple(range(50)) * 10, max_tokens=100)))
    assert len(events) == 12
    assert events[-1].finish_reason == "length"


def test_a_prompt_that_fills_the_window_is_refused_with_the_numbers(engine: Engine) -> None:
    with pytest.raises(ContextOverflowError, match="512 tokens and the context window holds 512"):
        next(engine.run(request((1,) * 512)))


def test_a_long_prompt_runs_in_chunks(engine: Engine) -> None:
    tokens(engine, request((3,) * (PREFILL_CHUNK + 10), max_tokens=1))
    assert engine.backend.steps == [PREFILL_CHUNK, 10]


def test_the_shared_prefix_is_not_computed_again(engine: Engine) -> None:
    first = tuple(range(20))
    answer = tokens(engine, request(first, max_tokens=5))
    second = first + tuple(answer) + (7, 8, 9)
    expected = tokens(Engine(engine.backend, 512), request(second))
    tokens(engine, request(first, max_tokens=5))
    engine.backend.steps = []
    events = list(engine.run(request(second)))
    # The last token of the answer was sampled but never run.
    assert (events[0].cached_tokens, engine.backend.steps[0]) == (24, 4)
    assert [e.token_id for e in events] == expected


def test_the_same_prompt_again_runs_one_token_and_gives_the_same_answer(engine: Engine) -> None:
    expected = tokens(engine, request((5, 6, 7, 8)))
    engine.backend.steps = []
    assert tokens(engine, request((5, 6, 7, 8))) == expected
    assert engine.backend.steps[0] == 1


def test_an_abandoned_answer_leaves_the_engine_usable(engine: Engine) -> None:
    expected = tokens(engine, request((1, 2, 3)))
    events = engine.run(request((9, 9, 9)))
    next(events)
    events.close()
    assert tokens(engine, request((1, 2, 3))) == expected


def test_a_failing_step_leaves_the_engine_usable(engine: Engine) -> None:
    expected = tokens(engine, request((1, 2, 3)))
    step = engine.backend.step

    def failing(batch: ModelInput) -> np.ndarray:
        step(batch)
        raise KeyboardInterrupt

    engine.backend.step = failing
    with pytest.raises(KeyboardInterrupt):
        tokens(engine, request((1, 2, 4, 4)))
    engine.backend.step = step
    assert tokens(engine, request((1, 2, 3))) == expected


def test_logits_that_are_not_numbers_are_an_error(engine: Engine) -> None:
    engine.backend.step = lambda batch: np.full((1, 61), np.nan, dtype=np.float32)
    with pytest.raises(BackendError, match="not a number"):
        next(engine.run(request((1, 2))))


def test_scores_cover_the_rows_asked_for(engine: Engine) -> None:
    ids = [i % 61 for i in range(PREFILL_CHUNK + 50)]
    everything = engine.score(ids)
    assert everything.shape == (PREFILL_CHUNK + 50, 61)
    for first in (10, PREFILL_CHUNK, PREFILL_CHUNK + 20):
        assert np.abs(engine.score(ids, first_row=first) - everything[first:]).max() < 1e-5


def test_the_same_seed_gives_the_same_text_and_another_seed_another(engine: Engine) -> None:
    def sampled(seed: int | None) -> list[int]:
        return tokens(engine, Request((1, 2, 3), SamplingParams(temperature=1.5, seed=seed), 20, frozenset()))

    assert sampled(1) == sampled(1)
    assert len({tuple(sampled(s)) for s in (1, 2, None, None)}) == 4
