"""On the native backend no answer depends on who else runs: alone, in a crowd, cut up or preempted."""

import numpy as np
import pytest

from nanollama.backends.native.backend import NativeBackend
from nanollama.backends.native.library import Library
from nanollama.backends.native.locate import find_library
from nanollama.engine.engine import Engine, EngineConfig
from nanollama.types import Logprob, Request, SamplingParams
from toys import make_toy

CROWD = 32
WAYS = {
    "in one crowd": (8192, EngineConfig(n_ctx=256, max_sequences=CROWD, token_budget=512)),
    "in small pieces": (8192, EngineConfig(n_ctx=256, max_sequences=CROWD, token_budget=40)),
    "preempted": (288, EngineConfig(n_ctx=256, max_sequences=12, token_budget=48)),
}


def backend(kind: str, cache_tokens: int) -> NativeBackend:
    toy = make_toy(kind)
    return NativeBackend(
        toy.spec, toy.tensors, library=Library(find_library()), threads=2, cache_tokens=cache_tokens
    )


def requests() -> list[Request]:
    """Greedy and seeded ones of many lengths; every third begins like the others, to share blocks."""
    random = np.random.default_rng(11)
    shared = tuple(int(i) for i in random.integers(0, 61, 70))
    made = []
    for i in range(CROWD):
        own = tuple(int(t) for t in random.integers(0, 61, random.integers(1, 80)))
        made.append(
            Request(
                shared + own if i % 3 == 0 else own,
                SamplingParams(temperature=0.0 if i % 2 else 1.1, seed=i, repeat_penalty=1.2),
                max_tokens=int(random.integers(30, 90)),
                stop_ids=frozenset(),
                logprobs=0,
            )
        )
    return made


def answers(engine: Engine, made: list[Request]) -> list[list[tuple[int, Logprob | None]]]:
    generations = [engine.submit(each) for each in made]
    return [[(event.token_id, event.logprob) for event in generation] for generation in generations]


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_tokens_and_logprobs_are_equal_to_the_bit(kind: str) -> None:
    made = requests()
    alone = []
    for each in made:
        # A new engine knows no prefix; the backend's cache is overwritten.
        engine = Engine(backend(kind, 512), EngineConfig(n_ctx=256))
        alone += answers(engine, [each])
        engine.close()
    for way, (cache_tokens, config) in WAYS.items():
        engine = Engine(backend(kind, cache_tokens), config)
        crowd = answers(engine, made)
        again = answers(engine, made)
        stats = engine.stats()
        engine.close()
        assert crowd == alone, way
        assert again == alone, f"{way}, with prefixes in the cache"
        assert (stats.preemptions > 0) == (way == "preempted")
