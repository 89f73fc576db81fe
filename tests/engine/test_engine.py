"""The engine over toy models: what a caller sees, alone and in a crowd, in good times and in bad."""

import asyncio
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from nanollama import reference
from nanollama.backends.ops import ModelInput
from nanollama.backends.torch_backend import TorchBackend
from nanollama.engine.engine import Engine, EngineConfig
from nanollama.engine.generation import Generation, Waker
from nanollama.errors import BackendError, ContextOverflowError, OverloadedError
from nanollama.sampling.edits import Edits
from nanollama.types import Request, SamplingParams, TokenEvent
from toys import make_toy

GREEDY = SamplingParams()


class WatchedBackend(TorchBackend):
    """The torch backend, with a record of the tokens of each step, and a place for trouble."""

    trouble: BaseException | None = None
    gate: threading.Event | None = None

    def step(self, batch: ModelInput) -> np.ndarray:
        self._watch(batch)
        return super().step(batch)

    def best(
        self, batch: ModelInput, k: int = 1, edits: Edits | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        self._watch(batch)
        return super().best(batch, k, edits)

    def _watch(self, batch: ModelInput) -> None:
        if self.gate is not None:
            assert self.gate.wait(20)
        self.__dict__.setdefault("steps", []).append(len(batch.token_ids))
        if self.trouble is not None:
            trouble, self.trouble = self.trouble, None
            raise trouble


def backend_of(kind: str = "llama", cache_tokens: int = 2048) -> WatchedBackend:
    toy = make_toy(kind)
    return WatchedBackend(toy.spec, toy.tensors, device="cpu", dtype="float32", cache_tokens=cache_tokens)


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine(backend_of(), EngineConfig(n_ctx=512, token_budget=64))
    yield engine
    engine.close()


def request(ids: tuple[int, ...], max_tokens: int = 8, **fields: object) -> Request:
    values = {"sampling": GREEDY, "stop_ids": frozenset()} | fields
    return Request(ids, max_tokens=max_tokens, **values)  # type: ignore[arg-type]


def tokens(generation: Generation) -> list[int]:
    return [event.token_id for event in generation]


def alone(r: Request, kind: str = "llama") -> list[int]:
    engine = Engine(backend_of(kind), EngineConfig(n_ctx=512))
    answer = tokens(engine.submit(r))
    engine.close()
    return answer


def test_greedy_answers_are_those_of_the_reference(engine: Engine) -> None:
    toy, ids = make_toy("llama"), tuple(range(11))
    params = {name: torch.from_numpy(array) for name, array in toy.arrays.items()}
    expected = reference.greedy(toy.spec, params, ids, 20)
    assert tokens(engine.submit(request(ids, 20))) == expected


def test_an_answer_ends_with_length_at_max_tokens(engine: Engine) -> None:
    events = list(engine.submit(request((1, 2, 3), 5)))
    assert [e.finish_reason for e in events] == [None] * 4 + ["length"]


def test_an_answer_ends_with_stop_at_a_stop_id(engine: Engine) -> None:
    free = tokens(engine.submit(request((1, 2, 3))))
    events = list(engine.submit(request((1, 2, 3), stop_ids=frozenset([free[3]]))))
    assert [e.token_id for e in events] == free[: free.index(free[3]) + 1]
    assert events[-1].finish_reason == "stop"


def test_no_answer_ends_before_min_tokens(engine: Engine) -> None:
    free = tokens(engine.submit(request((1, 2, 3))))
    stop_ids = frozenset(free)
    events = list(engine.submit(request((1, 2, 3), 20, stop_ids=stop_ids, min_tokens=6)))
    assert len(events) > 6
    assert not stop_ids & {e.token_id for e in events[:6]}


def test_an_answer_ends_where_the_window_ends(engine: Engine) -> None:
    events = list(engine.submit(request(tuple(range(50)) * 10, 100)))
    assert len(events) == 12
    assert events[-1].finish_reason == "length"


def test_a_prompt_that_fills_the_window_is_refused_at_once(engine: Engine) -> None:
    with pytest.raises(ContextOverflowError, match="512"):
        engine.submit(request((1,) * 512))


def test_a_long_prompt_runs_in_chunks(engine: Engine) -> None:
    tokens(engine.submit(request((3,) * 150, 1)))
    assert engine.backend.steps == [64, 64, 22]


def test_a_first_token_and_an_end_wake_their_reader_and_before_a_prompts_step_all_are_woken(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Waker, "INTERVAL_S", float("inf"))

    async def woken() -> tuple[int, int]:
        loop, calls = asyncio.get_running_loop(), []
        monkeypatch.setattr(loop, "call_soon_threadsafe", lambda work, *args: calls.append((work, args)))
        engine.backend.gate = threading.Event()
        before = engine.submit(request((9, 9, 9), 1))
        while before.started is None:  # the others wait for its step, to begin together
            await asyncio.sleep(0.001)
        one, other = engine.submit(request((1, 2, 3), 20)), engine.submit(request((4,) * 150, 1))
        for generation in (one, other):
            generation.listen(lambda: None)
        engine.backend.gate.set()
        tokens(before)
        tokens(other)
        taken = len(tokens(one))
        return taken, len(calls)

    # 1: the first token. 2: its next ones, before the last part of the other's prompt. 3: the other's only
    # token. 4: the end.
    assert asyncio.run(woken()) == (20, 4)


@pytest.mark.parametrize(("max_sequences", "steps"), [(8, [32, 32, 32, 4]), (24, [48, 48, 4])])
def test_steps_are_as_long_as_the_backend_likes_them_and_leave_half_to_prompts(
    max_sequences: int, steps: list[int]
) -> None:
    backend = backend_of()
    backend.step_rows = 32
    engine = Engine(backend, EngineConfig(n_ctx=512, max_sequences=max_sequences))
    tokens(engine.submit(request((3,) * 100, 1)))
    engine.close()
    assert backend.steps == steps


def test_a_shared_prefix_is_computed_once(engine: Engine) -> None:
    first = tuple(range(60))
    tokens(engine.submit(request(first, 1)))
    second = (*first, 5, 6, 7, 8, 9)
    engine.backend.steps.clear()
    events = list(engine.submit(request(second, 3)))
    assert events[0].cached_tokens == 60
    assert engine.backend.steps[0] == 65 - 60
    assert [e.token_id for e in events] == alone(request(second, 3))


def test_salts_share_nothing(engine: Engine) -> None:
    ids = tuple(range(60))
    tokens(engine.submit(request(ids, 1, salt="a")))
    assert next(iter(engine.submit(request(ids, 1, salt="b")))).cached_tokens == 0


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
@pytest.mark.parametrize("cache_tokens", [2048, 320])
def test_no_answer_depends_on_the_crowd(kind: str, cache_tokens: int) -> None:
    """Requests of many lengths, greedy and seeded; in the small cache some are preempted and go on.

    Some want all logits, others the best: alone these are chosen where the logits are, in the crowd not.
    """
    random = np.random.default_rng(3)
    requests = [
        request(
            tuple(int(i) for i in random.integers(0, 61, random.integers(1, 60))),
            int(random.integers(1, 110)),
            sampling=SamplingParams(
                temperature=float(random.choice([0.0, 1.2])),
                top_k=[None, 5, 61, 300][i % 4],
                seed=i,
                repeat_penalty=1.2,
            ),
            min_tokens=20 * (i % 3),
        )
        for i in range(14)
    ]
    engine = Engine(backend_of(kind, cache_tokens), EngineConfig(n_ctx=256, max_sequences=8, token_budget=48))
    generations = [engine.submit(r) for r in requests]
    crowd = [tokens(g) for g in generations]
    stats = engine.stats()
    engine.close()
    assert crowd == [alone(r, kind) for r in requests]
    assert (stats.running, stats.waiting, stats.blocks_used) == (0, 0, 0)
    assert (stats.preemptions > 0) == (cache_tokens == 320)


def test_abort_frees_slot_and_blocks(engine: Engine) -> None:
    engine.backend.gate = threading.Event()
    generation = engine.submit(request((1, 2, 3), 400))
    engine.backend.gate.set()
    events = iter(generation)
    next(events)
    generation.abort()
    assert tokens(engine.submit(request((4, 5), 2)))  # has come round the loop once more
    assert engine.stats().blocks_used == 0
    assert len(list(events)) < 399


def test_abort_before_anything_ran(engine: Engine) -> None:
    engine.backend.gate = threading.Event()
    generations = [engine.submit(request((i, 2, 3), 400)) for i in range(3)]
    for generation in generations:
        generation.abort()
        generation.abort()
    engine.backend.gate.set()
    assert [len(list(g)) for g in generations] == [0, 0, 0]
    assert tokens(engine.submit(request((4, 5), 2)))
    assert engine.stats().running == 0


def test_an_error_in_a_step_ends_its_requests_and_no_others(engine: Engine) -> None:
    engine.backend.trouble = RuntimeError("out of luck")
    with pytest.raises(BackendError, match="out of luck"):
        tokens(engine.submit(request((1, 2, 3))))
    assert tokens(engine.submit(request((1, 2, 3)))) == alone(request((1, 2, 3)))
    assert engine.stats().blocks_used == 0


@pytest.mark.parametrize("top_k", [None, 3])
def test_an_error_in_a_request_ends_that_request_alone(engine: Engine, top_k: int | None) -> None:
    class Broken:
        def __float__(self) -> float:
            raise BackendError("this request can't be sampled")

    engine.backend.gate = threading.Event()
    sampling = SamplingParams(temperature=Broken(), top_k=top_k)  # type: ignore[arg-type]
    bad = engine.submit(request((1, 2, 3), sampling=sampling))
    good = engine.submit(request((1, 2, 4)))
    engine.backend.gate.set()
    with pytest.raises(BackendError, match="can't be sampled"):
        tokens(bad)
    assert tokens(good) == alone(request((1, 2, 4)))


def test_when_the_thread_dies_everybody_is_told_and_a_new_one_takes_over(engine: Engine) -> None:
    expected = alone(request((1, 2, 3)))
    engine.backend.trouble = SystemExit("gone")
    engine.backend.gate = threading.Event()
    generations = [engine.submit(request((i, 2, 3), 50)) for i in range(3)]
    engine.backend.gate.set()
    for generation in generations:
        with pytest.raises(BackendError, match="the engine failed"):
            tokens(generation)
    deadline = time.monotonic() + 10
    while not engine.stats().alive and time.monotonic() < deadline:
        time.sleep(0.01)
    assert engine.stats().alive
    assert tokens(engine.submit(request((1, 2, 3)))) == expected


def test_a_full_queue_refuses_at_once() -> None:
    backend = backend_of()
    backend.gate = threading.Event()
    engine = Engine(backend, EngineConfig(n_ctx=512, max_sequences=1, max_queue=2))
    accepted = [engine.submit(request((1, 2), 3)) for _ in range(3)]
    with pytest.raises(OverloadedError):
        engine.submit(request((1, 2), 3))
    backend.gate.set()
    assert [len(tokens(g)) for g in accepted] == [3, 3, 3]
    engine.close()


@pytest.mark.parametrize(
    "sampling", [GREEDY, SamplingParams(temperature=1.0), SamplingParams(temperature=1.0, top_k=3)]
)
def test_logits_that_are_not_numbers_are_an_error(engine: Engine, sampling: SamplingParams) -> None:
    engine.backend.step = lambda batch: np.full((1, 61), np.nan, dtype=np.float32)
    engine.backend.best = lambda batch, k, edits: (
        np.zeros((1, k), np.int64),
        np.full((1, k), np.nan, np.float32),
    )
    with pytest.raises(BackendError, match="not a number"):
        tokens(engine.submit(request((1, 2))))


def test_logprobs_are_those_of_the_model(engine: Engine) -> None:
    toy, ids = make_toy("llama"), (1, 2, 3, 4)
    params = {name: torch.from_numpy(array) for name, array in toy.arrays.items()}
    log_p = reference.logits(toy.spec, params, ids).log_softmax(-1)
    (event,) = engine.submit(request(ids, 1, logprobs=3, prompt_logprobs=2))
    assert event.logprob is not None
    assert event.logprob.logprob == pytest.approx(float(log_p[-1, event.token_id]), abs=1e-4)
    best = log_p[-1].topk(3)
    assert [i for i, _ in event.logprob.top] == best.indices.tolist()
    assert [x for _, x in event.logprob.top] == pytest.approx(best.values.tolist(), abs=1e-4)
    assert [p.token_id for p in event.prompt_logprobs] == [2, 3, 4]
    expected = [float(log_p[i, ids[i + 1]]) for i in range(3)]
    assert [p.logprob for p in event.prompt_logprobs] == pytest.approx(expected, abs=1e-4)
    assert all(len(p.top) == 2 for p in event.prompt_logprobs)


def test_prompt_logprobs_are_complete_when_the_prompt_is_cached(engine: Engine) -> None:
    ids = tuple(range(60))
    first = next(iter(engine.submit(request(ids, 1, prompt_logprobs=0)))).prompt_logprobs
    again = next(iter(engine.submit(request(ids, 1, prompt_logprobs=0)))).prompt_logprobs
    assert len(first) == 59
    assert [p.logprob for p in first] == pytest.approx([p.logprob for p in again], abs=1e-5)


def test_asyncio_tasks_take_turns_with_threads(engine: Engine) -> None:
    async def collect(r: Request) -> list[TokenEvent]:
        return [event async for event in engine.submit(r)]

    async def main() -> list[list[TokenEvent]]:
        return await asyncio.gather(*(collect(request((i, 5), 10)) for i in range(8)))

    answers = asyncio.run(main())
    for i, events in enumerate(answers):
        assert [e.token_id for e in events] == tokens(engine.submit(request((i, 5), 10)))


class CountingLoop(asyncio.SelectorEventLoop):
    """Counts the calls that come from other threads."""

    calls = 0

    def call_soon_threadsafe(self, *args: object, **kwargs: object) -> asyncio.Handle:
        self.calls += 1
        return super().call_soon_threadsafe(*args, **kwargs)


def test_a_step_calls_into_the_event_loop_once_however_many_tasks_wait(engine: Engine) -> None:
    async def collect(r: Request) -> int:
        return len([event async for event in engine.submit(r)])

    async def main() -> int:
        assert await asyncio.gather(*(collect(request((i, 5), 20)) for i in range(8))) == [20] * 8
        return asyncio.get_running_loop().calls

    with asyncio.Runner(loop_factory=CountingLoop) as runner:
        assert 0 < runner.run(main()) <= len(engine.backend.steps)


def test_a_closed_engine_refuses_and_ends_what_runs() -> None:
    backend = backend_of()
    engine = Engine(backend, EngineConfig(n_ctx=512))
    backend.gate = threading.Event()
    generation = engine.submit(request((1, 2), 400))
    threading.Timer(0.2, backend.gate.set).start()
    engine.close()
    with pytest.raises(BackendError, match="closed"):
        tokens(generation)
    with pytest.raises(BackendError, match="closed"):
        engine.submit(request((1, 2)))


def test_scores_wait_for_requests_and_cover_the_rows_asked_for(engine: Engine) -> None:
    ids = [i % 61 for i in range(150)]
    running = engine.submit(request((1, 2, 3), 30))
    everything = engine.score(ids)
    assert len(tokens(running)) == 30
    assert everything.shape == (150, 61)
    for first in (10, 64, 100):
        assert np.abs(engine.score(ids, first_row=first) - everything[first:]).max() < 1e-5
