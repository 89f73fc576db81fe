"""Prompts that end or depart inside a block, on both backends: what is copied changes no answer."""

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from nanollama.backends.native.backend import NativeBackend
from nanollama.backends.native.kv_cache import BLOCK_TOKENS
from nanollama.backends.native.library import Library
from nanollama.backends.native.locate import find_library
from nanollama.backends.ops import Backend, ModelInput, SequenceInput
from nanollama.backends.torch_backend import TorchBackend
from nanollama.engine.engine import Engine, EngineConfig
from nanollama.sampling.edits import Edits
from nanollama.types import Request, SamplingParams, TokenEvent
from toys import VOCAB, make_toy

KINDS = ["llama", "gemma3"]


def native(kind: str, cache_tokens: int) -> Backend:
    toy = make_toy(kind)
    return NativeBackend(
        toy.spec, toy.tensors, library=Library(find_library()), threads=2, cache_tokens=cache_tokens
    )


def on_torch(kind: str, cache_tokens: int) -> Backend:
    toy = make_toy(kind)
    return TorchBackend(toy.spec, toy.tensors, device="cpu", dtype="float32", cache_tokens=cache_tokens)


MAKERS = {"native": native, "torch": on_torch}


class Watched:
    """A backend, with a record of its steps, and a gate before each."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.steps: list[ModelInput] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def step(self, batch: ModelInput) -> np.ndarray:
        self._watch(batch)
        return self.backend.step(batch)

    def best(
        self, batch: ModelInput, k: int = 1, edits: Edits | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        self._watch(batch)
        return self.backend.best(batch, k, edits)

    def _watch(self, batch: ModelInput) -> None:
        self.steps.append(batch)
        self.entered.set()
        assert self.gate.wait(20)

    @property
    def copies(self) -> list[tuple[int, int]]:
        return [copy for batch in self.steps for copy in batch.copies]


def engine_of(maker: str, kind: str, cache_tokens: int = 1024) -> Engine:
    return Engine(Watched(MAKERS[maker](kind, cache_tokens)), EngineConfig(n_ctx=256))


@pytest.fixture(params=MAKERS)
def maker(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def engine(maker: str) -> Iterator[Engine]:
    engine = engine_of(maker, "llama")
    yield engine
    engine.close()


def ids_of(seed: int, n: int) -> tuple[int, ...]:
    return tuple(np.random.default_rng(seed).integers(0, VOCAB, n).tolist())


def request(ids: tuple[int, ...], max_tokens: int = 8, **fields: Any) -> Request:
    values = {"sampling": SamplingParams(), "stop_ids": frozenset(), "logprobs": 3} | fields
    return Request(ids, max_tokens=max_tokens, **values)


def answers(engine: Engine, requests: list[Request]) -> list[list[TokenEvent]]:
    """The answers to requests that all wait when a step begins."""
    backend = engine.backend
    backend.gate.clear()
    backend.entered.clear()
    first = engine.submit(request((60,), 1, salt="nobody's"))  # keeps the engine busy until all have come
    assert backend.entered.wait(20)
    running = [engine.submit(each) for each in requests]
    backend.gate.set()
    list(first)
    return [list(each) for each in running]


def assert_same(found: list[TokenEvent], alone: list[TokenEvent], maker: str) -> None:
    assert [event.token_id for event in found] == [event.token_id for event in alone]
    for one, other in zip(found, alone, strict=True):
        if maker == "native":
            assert one.logprob == other.logprob, "to the bit"
        else:
            assert abs(one.logprob.logprob - other.logprob.logprob) < 1e-4


def alone(maker: str, each: Request, kind: str = "llama") -> list[TokenEvent]:
    """The answer of an engine that knows nothing else, from a cache in which nothing is left."""
    engine = engine_of(maker, kind)
    try:
        return list(engine.submit(each))
    finally:
        engine.close()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_told", [70, 96])
@pytest.mark.parametrize(
    ("n_same", "n_other", "n_cached"),
    [
        (51, 0, 50),  # the same prompt again, which ends inside a block
        (32, 0, 31),
        (64, 0, 63),
        (64, 1, 64),  # whole blocks, nothing to copy
        (70, 0, 69),  # what was told ends inside a block, or does not
        (70, 20, 70),
        (20, 0, 19),  # inside the first block
        (45, 25, 45),  # departs inside a block, and ends behind it
        (10, 3, 10),
        (35, 30, 32),  # too little to copy
    ],
)
def test_an_answer_is_the_same_with_a_copied_block(
    maker: str, kind: str, n_told: int, n_same: int, n_other: int, n_cached: int
) -> None:
    told = ids_of(1, 96)
    again = request((*told[:n_same], *((i + 1) % VOCAB for i in told[n_same : n_same + n_other])), 40)
    told = told[:n_told]
    engine = engine_of(maker, kind)
    list(engine.submit(request(told, 1)))
    events = list(engine.submit(again))
    stats = engine.stats()
    engine.close()
    assert events[0].cached_tokens == stats.prefix_hit_tokens == n_cached
    assert len(engine.backend.copies) == (n_cached % BLOCK_TOKENS > 0)
    assert sum(len(s.token_ids) for s in engine.backend.steps) == n_told + n_same + n_other - n_cached + 39
    assert_same(events, alone(maker, again, kind), maker)


@pytest.mark.parametrize("max_tokens", [1, 4, 20])
def test_a_repeated_prompt_computes_one_token_however_short_its_answer_was(
    engine: Engine, maker: str, max_tokens: int
) -> None:
    asked = request(ids_of(2, 51), max_tokens)
    first, second, third = (list(engine.submit(asked)) for _ in range(3))
    assert [events[0].cached_tokens for events in (first, second, third)] == [0, 50, 50]
    assert_same(second, first, maker)
    assert_same(third, first, maker)


def test_two_sequences_copy_from_one_source_in_one_step(engine: Engine, maker: str) -> None:
    told = ids_of(3, 70)
    list(engine.submit(request(told, 1)))
    requests = [request(told[:51], 30), request((*told[:45], 1, 2, 3), 30), request(told[:51], 30)]
    found = answers(engine, requests)
    (copies,) = [batch.copies for batch in engine.backend.steps if batch.copies]
    assert len(copies) == 3
    assert len({source for source, _ in copies}) == 1
    for events, each in zip(found, requests, strict=True):
        assert_same(events, alone(maker, each), maker)


def test_a_source_that_is_written_in_the_same_step_is_copied_before(maker: str) -> None:
    """Four blocks: the second request needs the one that the first copies from."""
    engine = engine_of(maker, "llama", 4 * BLOCK_TOKENS)
    told = ids_of(4, 64)
    list(engine.submit(request(told, 1)))
    requests = [request(told[:50], 6), request(ids_of(5, 40), 6)]
    found = answers(engine, requests)
    engine.close()
    (batch,) = [batch for batch in engine.backend.steps if batch.copies]
    ((source, _),) = batch.copies
    assert source in batch.sequences[1].block_table, "the source is evicted for the other request"
    for events, each in zip(found, requests, strict=True):
        assert_same(events, alone(maker, each), maker)


def test_a_source_that_is_copied_into_in_the_same_step_is_copied_before(maker: str) -> None:
    engine = engine_of(maker, "llama", 5 * BLOCK_TOKENS)
    one, other = ids_of(6, 64), ids_of(7, 64)
    list(engine.submit(request(one, 1)))
    list(engine.submit(request(other, 1)))
    requests = [request(one[:50], 6), request(other[:50], 6)]
    found = answers(engine, requests)
    engine.close()
    (copies,) = [batch.copies for batch in engine.backend.steps if batch.copies]
    assert copies[0][0] == copies[1][1], "the first source becomes the second destination"
    for events, each in zip(found, requests, strict=True):
        assert_same(events, alone(maker, each), maker)


def test_other_salts_and_scored_prompts_copy_nothing(engine: Engine) -> None:
    told = ids_of(8, 70)
    list(engine.submit(request(told, 1, salt="a")))
    for fields in ({"salt": "b"}, {}, {"salt": "a", "prompt_logprobs": 0}):
        assert next(iter(engine.submit(request(told[:51], 1, **fields)))).cached_tokens == 0
    assert engine.backend.copies == []
    assert next(iter(engine.submit(request(told[:51], 1, salt="a")))).cached_tokens == 50


def test_a_step_that_fails_before_its_copies_leaves_nothing_wrong_behind(maker: str) -> None:
    engine = engine_of(maker, "llama")
    told = ids_of(9, 70)
    asked = request(told[:51], 30)
    list(engine.submit(request(told, 1)))
    engine.backend.gate = NeverOpen()
    with pytest.raises(Exception, match="out of luck"):
        list(engine.submit(asked))
    engine.backend.gate = threading.Event()
    engine.backend.gate.set()
    events = list(engine.submit(asked))
    stats = engine.stats()
    engine.close()
    assert events[0].cached_tokens == 50
    assert stats.blocks_used == 0
    assert_same(events, alone(maker, asked), maker)


class NeverOpen(threading.Event):
    def wait(self, timeout: float | None = None) -> bool:
        raise RuntimeError("out of luck")


@pytest.mark.parametrize("kind", KINDS)
def test_a_backend_copies_all_layers_in_order(maker: str, kind: str) -> None:
    """The first source is the second destination: what is read there is what was there before the step."""
    backend = MAKERS[maker](kind, 512)
    one, other = ids_of(10, 20), ids_of(11, 20)

    def last_logits(ids: tuple[int, ...], n_cached: int, block: int, copies: Any = ()) -> np.ndarray:
        part = ids[n_cached:]
        sequence = SequenceInput(len(part), n_cached, (block,))
        return backend.step(ModelInput(part, (sequence,), (len(part) - 1,), copies)).copy()

    expected = [last_logits(one, 0, 3), last_logits(other, 0, 7)]
    first = last_logits(one, 19, 9, copies=((3, 9), (7, 3)))
    second = last_logits(other, 19, 3)
    for found, whole in zip((first, second), expected, strict=True):
        assert np.array_equal(found, whole) if maker == "native" else np.abs(found - whole).max() < 1e-4
    backend.close()
