"""Schedulers and sequences of small sizes, for the tests of the engine's decisions."""

import itertools

from nanollama.engine.blocks import BlockManager
from nanollama.engine.scheduler import Scheduler, SchedulerConfig
from nanollama.engine.sequence import Sequence
from nanollama.types import Request, SamplingParams

SIZE = 4
_ids = itertools.count()


def scheduler(*, num_blocks=64, block_tokens=SIZE, max_sequences=8, budget=16, n_ctx=128) -> Scheduler:
    config = SchedulerConfig(max_sequences, budget, n_ctx)
    return Scheduler(config, BlockManager(num_blocks, block_tokens, b"model"))


def sequence(id: int, tokens, max_tokens: int = 8, arrival: float | None = None, **request) -> Sequence:
    made = Request(tuple(tokens), SamplingParams(), max_tokens, frozenset(), **request)
    return Sequence(id, made, float(id) if arrival is None else arrival, seed=0)


def named(blocks: BlockManager, tokens, salt: str = "", **request) -> Sequence:
    """A sequence of a number of its own, whose full blocks have their keys."""
    made = sequence(next(_ids), tokens, arrival=0.0, salt=salt, **request)
    blocks.name_blocks(made)
    return made
