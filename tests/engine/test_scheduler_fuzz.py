"""Random lives of a scheduler, with every invariant and every slot of the cache checked after each step."""

import random
from collections import Counter
from itertools import accumulate

import pytest

from nanollama.engine.children import MIN_COMMON
from nanollama.engine.scheduler import StepPlan
from nanollama.engine.sequence import Sequence, Status
from nanollama.errors import ContextOverflowError, UsageError
from sequences import scheduler, sequence


class World:
    """A scheduler under random use, with a cache that remembers what was written into each slot.

    A slot's content is a fingerprint of the salt and all tokens up to its own, as keys and values depend on
    them all. So a block shared or copied wrongly, evicted in use, written while shared, or found under a
    stale key shows as a wrong fingerprint.
    """

    def __init__(self, seed: int, size: int, **limits: int) -> None:
        self.rng = random.Random(seed)
        self.size = size
        n_ctx, num_blocks = limits["n_ctx"], limits["num_blocks"]
        self.scheduler = scheduler(block_tokens=size, **limits)
        self.cache: list[list[int]] = [[0] * size for _ in range(num_blocks)]
        self.fingerprints: dict[int, list[int]] = {}
        self.behind: dict[bytes, int] = {}  # the last fingerprint of what a key stands for
        self.prefixes = [[self.rng.randrange(3) for _ in range(n_ctx)] for _ in range(3)]
        self.seen: Counter[str] = Counter()
        self.n_ids = 0

    def operate(self, load: float) -> None:
        """Do one random thing; ``load`` is the share of new requests."""
        draw = self.rng.random()
        live = self.scheduler.running + self.scheduler.waiting
        if draw < load or not live:
            self.add()
        elif draw < load + 0.02:
            self.scheduler.abort(self.rng.choice(live).id)
            self.seen["aborts"] += 1
        elif draw < load + 0.03:
            self.scheduler.finish(self.rng.choice(live))
        else:
            self.step()
        self.scheduler.check()
        if self.rng.random() < 0.02:
            self.check_findable()

    def add(self) -> None:
        """Add a request, or the answers to one prompt."""
        rng = self.rng
        shared = rng.choice(self.prefixes)[: int(rng.random() ** 3 * self.scheduler.n_ctx)]
        tokens = shared + [rng.randrange(3) for _ in range(rng.randrange(0, 8))]
        common = {
            "max_tokens": rng.choice([1, 2, 5, 20, 40, 1000]),
            "priority": rng.choice([0, 0, 0, 0, 0, 1, -1]),
            "salt": rng.choice(["", "", "b"]),
            "prompt_logprobs": rng.choice([None, None, None, None, 0]),
        }
        for _ in range(rng.choice([1, 1, 1, 2, 4])):
            self.n_ids += 1
            self.add_one(sequence(self.n_ids, tokens, arrival=float(self.n_ids // 3), **common))

    def add_one(self, new: Sequence) -> None:
        s = self.scheduler
        if len(s.running) + len(s.waiting) == s.config.max_sequences + 12:
            self.seen["full queues"] += 1
            return
        try:
            s.add(new)
        except (UsageError, ContextOverflowError):
            assert not 1 <= new.n_prompt < s.n_ctx
        else:
            self.fingerprints[new.id] = []
            self.extend(new)

    def extend(self, one: Sequence) -> None:
        """Fingerprint the tokens that are new."""
        known = self.fingerprints[one.id]
        for token in one.token_ids[len(known) :]:
            known.append(hash((known[-1] if known else hash(one.request.salt), token)))
        self.behind[self.scheduler.blocks._root(one.request.salt)] = hash(one.request.salt)
        for i, key in enumerate(one.block_keys, 1):
            self.behind[key] = known[i * self.size - 1]

    def step(self) -> None:
        s, rng = self.scheduler, self.rng
        before = list(s.running)
        decoding = [r for r in before if r.n_uncached == 1]
        plan = s.plan()
        self.check_plan(plan, before, decoding)
        s.check()
        is_source_gone = any(s.blocks._key_of[source] is None for source, _ in plan.copies)
        if rng.random() < (0.5 if is_source_gone else 0.01):
            self.fail(plan)  # before anything was copied
            return
        self.copy(plan)
        self.check_content()
        self.write(plan)
        self.seen["preemptions"] += len(plan.preempted)
        newest = max((r.order for r in s.running if r not in before), default=None)
        self.seen["held back"] += newest is not None and any(w.order < newest for w in s.waiting)
        if rng.random() < 0.02:
            self.fail(plan)
            return
        if rng.random() < 0.05:
            s.abort(rng.choice(plan.scheduled).sequence.id)
        sampled = {i.sequence.id: rng.randrange(3) for i in plan.scheduled if i.wants_logits}
        lengths = {i.sequence.id: i.sequence.n_tokens for i in plan.scheduled}
        s.complete(plan, sampled)
        for item in plan.scheduled:
            one = item.sequence
            grown = item.wants_logits and one.status is Status.RUNNING
            assert one.token_ids[lengths[one.id] :] == ([sampled[one.id]] if grown else [])
            self.extend(one)
            if one.n_generated >= one.request.max_tokens or one.n_tokens == s.n_ctx:
                s.finish(one)
                self.seen["finished"] += 1

    def check_plan(self, plan: StepPlan, before: list[Sequence], decoding: list[Sequence]) -> None:
        s = self.scheduler
        planned = [item.sequence for item in plan.scheduled]
        assert planned, "there is work, so some of it is done"
        assert len(planned) == len({p.id for p in planned})
        assert sum(item.n_new for item in plan.scheduled) <= s.config.token_budget
        assert all(p.status is Status.RUNNING for p in planned)
        assert all(p.status is Status.WAITING for p in plan.preempted)
        rows = [d for d in decoding if d not in plan.preempted]
        assert planned[: len(rows)] == rows, "decode rows come first, all of them, in order"
        if before:
            assert before[0] in planned, "the first in order always goes on"
        if plan.preempted:
            last = max(p.order for p in planned)
            assert all(p.order > last for p in plan.preempted), "only the last in order make room"
        ends = {p.block_table[p.n_cached // self.size] for p in planned if p not in before}
        assert {destination for _, destination in plan.copies} <= ends, "a copy goes where nobody continues"
        for item in plan.scheduled:
            one = item.sequence
            assert 1 <= item.n_new <= one.n_uncached
            assert item.wants_logits == (item.n_new == one.n_uncached)
            assert len(one.block_table) * self.size >= one.n_cached + item.n_new
            if one.request.prompt_logprobs is not None:
                assert one.n_cached <= one.n_computed, "a row whose logits are wanted was skipped"

    def fail(self, plan: StepPlan) -> None:
        """The step failed: nothing of it counts, and all that were in it end."""
        for item in plan.scheduled:
            self.scheduler.abort(item.sequence.id)
        self.seen["failures"] += 1
        self.check_findable()

    def copy(self, plan: StepPlan) -> None:
        """Make the copies one after the other, and look whether all at once would have been the same."""
        before = [list(block) for block in self.cache]
        for source, destination in plan.copies:
            self.cache[destination] = list(self.cache[source])
        assert all(self.cache[destination] == before[source] for source, destination in plan.copies)
        self.seen["copies"] += len(plan.copies)
        sources = Counter(source for source, _ in plan.copies)
        self.seen["copied twice"] += max(sources.values(), default=0) > 1
        written = {
            item.sequence.block_table[at // self.size]
            for item in plan.scheduled
            for at in range(item.sequence.n_cached, item.sequence.n_cached + item.n_new)
        }
        self.seen["evicted sources"] += any(source in written for source in sources)

    def check_content(self) -> None:
        for one in self.scheduler.running:
            known = self.fingerprints[one.id]
            for i in range(-(-one.n_cached // self.size)):
                n = min(self.size, one.n_cached - i * self.size)
                assert self.cache[one.block_table[i]][:n] == known[i * self.size : i * self.size + n]

    def check_findable(self) -> None:
        """All that others may find or copy, in use or not, is what it is found as."""
        for block, (parent, tokens) in self.scheduler.blocks._children.contents().items():
            expected = accumulate(tokens, lambda last, t: hash((last, t)), initial=self.behind[parent])
            assert self.cache[block][: len(tokens)] == list(expected)[1:]

    def write(self, plan: StepPlan) -> None:
        holders = Counter(block for one in self.scheduler.running for block in one.block_table)
        for item in plan.scheduled:
            one, known = item.sequence, self.fingerprints[item.sequence.id]
            for position in range(one.n_cached, one.n_cached + item.n_new):
                block = one.block_table[position // self.size]
                assert holders[block] == 1, "a shared block is written"
                self.cache[block][position % self.size] = known[position]

    def drain(self) -> None:
        for _ in range(5000):
            if not self.scheduler.has_work:
                break
            self.step()
        assert not self.scheduler.has_work, "somebody starves"
        self.scheduler.check()
        self.check_findable()
        stats = self.scheduler.stats
        assert stats.blocks_used == 0
        assert stats.blocks_free + stats.blocks_cached == self.scheduler.blocks.num_blocks


WORLDS = [
    {"num_blocks": 64, "size": 4, "max_sequences": 8, "budget": 16, "n_ctx": 64},  # room for all
    {"num_blocks": 12, "size": 8, "max_sequences": 8, "budget": 16, "n_ctx": 64},
    {"num_blocks": 12, "size": 4, "max_sequences": 6, "budget": 7, "n_ctx": 48},  # the cache is full with one
    {
        "num_blocks": 9,
        "size": 8,
        "max_sequences": 8,
        "budget": 64,
        "n_ctx": 80,
    },  # and smaller than the window
    {"num_blocks": 32, "size": 6, "max_sequences": 16, "budget": 16, "n_ctx": 40},
    {"num_blocks": 16, "size": 8, "max_sequences": 1, "budget": 5, "n_ctx": 64},
    {"num_blocks": 16, "size": 16, "max_sequences": 6, "budget": 6, "n_ctx": 100},
    {"num_blocks": 5, "size": 8, "max_sequences": 3, "budget": 3, "n_ctx": 40},
]
LOADS = (0.08, 0.4, 0.15, 0.03)
OPERATIONS = 4000
"""Under each load in each world: 128,000 together, and each world is drained after each load."""


@pytest.mark.parametrize("world", range(len(WORLDS)))
def test_a_long_random_life_keeps_every_invariant(world):
    life = World(world, **WORLDS[world])
    for load in LOADS:
        for _ in range(OPERATIONS):
            life.operate(load)
        life.drain()
    stats = life.scheduler.stats
    assert min(stats.tokens_found, stats.n_evictions) > 0
    assert min(life.seen[what] for what in ("aborts", "failures", "full queues", "finished")) > 0
    crowded = WORLDS[world]["max_sequences"] > 1
    if crowded:
        assert min(life.seen["held back"], life.seen["preemptions"]) > 0
    if WORLDS[world]["size"] > MIN_COMMON:
        assert life.seen["copies"] > 0
        assert life.seen["copied twice"] > 0 or not crowded
    else:
        assert life.seen["copies"] == 0, "what a block of that size holds is not worth a copy"
    if world == 3:  # many come at once, and the cache is small
        assert life.seen["evicted sources"] > 0


def test_a_life_is_the_same_every_time():
    lives = [World(5, **WORLDS[1]) for _ in range(2)]
    for _ in range(2000):
        plans = []
        for life in lives:
            life.operate(load=0.2)
            plans.append([(r.id, r.n_cached, r.block_table, r.token_ids) for r in life.scheduler.running])
        assert plans[0] == plans[1]
