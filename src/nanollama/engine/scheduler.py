"""Who runs in the next step, and with how many tokens: sequences in, a StepPlan out.

    plan -> the runner computes it -> complete -> finish those that ended -> plan ...

The rules, in the order in which a plan applies them:

1. Every running sequence with one token left to compute gets a row. If it needs a block and none is left,
   the running sequence last in order (priority, then arrival) is preempted: it gives up its blocks and waits
   to compute its tokens again.
2. The rest of the token budget goes to the prompts that are partly computed, first in order first.
3. What still remains goes to waiting sequences, first in order first, while there are slots and blocks.
   The first that does not fit stops admission, so that a large request is not overtaken for ever. A sequence
   gets the blocks of all its tokens when it is admitted; only decoding takes blocks later.

A waiting sequence is passed over while a running one is about to compute the very block it needs next: the
n answers to one prompt compute it once. That block is found or gone when the other is done, so this ends.

Invariants: while there is work, a plan is never empty; the first sequence in order that runs is never
preempted; all decisions depend on nothing but the calls made. No clock, no threads, no tensors.
"""

from bisect import insort
from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter

from nanollama.engine.blocks import BlockManager
from nanollama.engine.sequence import Sequence, Status
from nanollama.errors import ContextOverflowError, UsageError

MAX_PREEMPTIONS = 3
"""After so many, a sequence comes back only when it can stay."""

_ORDER = attrgetter("order")


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """Limits: sequences that run at once, tokens in a step, tokens of a sequence. Any number may wait."""

    max_sequences: int
    token_budget: int
    n_ctx: int

    def __post_init__(self) -> None:
        if not 1 <= self.max_sequences <= self.token_budget:
            raise UsageError(
                f"{self.max_sequences} sequences at once were asked for; a step computes {self.token_budget} "
                f"tokens, so expected 1 to {self.token_budget}"
            )


@dataclass(frozen=True, slots=True)
class ScheduledSequence:
    """The next ``n_new`` uncached tokens of a sequence; ``wants_logits`` if they reach its end."""

    sequence: Sequence
    n_new: int
    wants_logits: bool


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step: what to compute, decode rows first, who had to make room for it, and which blocks to copy
    before anything is computed."""

    scheduled: tuple[ScheduledSequence, ...]
    preempted: tuple[Sequence, ...]
    copies: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class SchedulerStats:
    """Counts to report: sequences and blocks now, tokens and events since the start."""

    n_running: int
    n_waiting: int
    blocks_free: int
    blocks_cached: int
    blocks_used: int
    tokens_looked_up: int
    tokens_found: int
    n_preemptions: int
    n_evictions: int


class Scheduler:
    """Decides what each step computes. Not thread-safe: one thread calls it."""

    def __init__(self, config: SchedulerConfig, blocks: BlockManager) -> None:
        self.config = config
        self.blocks = blocks
        self.running: list[Sequence] = []
        self.waiting: list[Sequence] = []
        self._known: dict[int, Sequence] = {}
        self._n_preemptions = 0

    @property
    def n_ctx(self) -> int:
        """The most tokens a sequence can have, prompt and answer: what the window and the cache both hold."""
        return min(self.config.n_ctx, self.blocks.num_blocks * self.blocks.block_tokens)

    @property
    def has_work(self) -> bool:
        return bool(self._known)

    @property
    def stats(self) -> SchedulerStats:
        blocks = self.blocks
        return SchedulerStats(
            n_running=len(self.running),
            n_waiting=len(self.waiting),
            blocks_free=blocks.n_free,
            blocks_cached=blocks.n_cached,
            blocks_used=blocks.n_used,
            tokens_looked_up=blocks.n_looked_up,
            tokens_found=blocks.n_found,
            n_preemptions=self._n_preemptions,
            n_evictions=blocks.n_evicted,
        )

    def add(self, sequence: Sequence) -> None:
        """Let a new sequence wait. Whatever is accepted can run to its end: alone, if need be.

        Raises:
            UsageError: the prompt is empty.
            ContextOverflowError: the prompt leaves no room for a single token.
        """
        assert sequence.status is Status.WAITING
        assert sequence.id not in self._known
        self.check_fits(sequence.n_prompt)
        self.blocks.name_blocks(sequence)
        self._known[sequence.id] = sequence
        insort(self.waiting, sequence, key=_ORDER)

    def check_fits(self, n_prompt: int) -> None:
        """Refuse what ``add`` would refuse. Only reads, so that any thread may ask.

        Raises:
            UsageError, ContextOverflowError: as ``add``.
        """
        if n_prompt == 0:
            raise UsageError("the prompt has no tokens; expected at least one")
        if n_prompt >= self.n_ctx:
            raise ContextOverflowError(self._overflow(n_prompt))

    def plan(self) -> StepPlan:
        """Choose the next step. ``complete`` must follow before the next plan; if the step failed, all that
        were in it must be aborted instead, for their tokens may count as cached by a copy never made."""
        preempted: list[Sequence] = []
        scheduled = self._decode_rows(preempted)
        budget = self.config.token_budget - len(scheduled)
        for sequence in self.running:
            if budget > 0 and sequence.n_uncached > 1:
                budget -= self._schedule(sequence, budget, scheduled)
        if not preempted:
            self._admit(budget, scheduled)
        assert scheduled or not self.has_work, "there is work and none of it can be done"
        return StepPlan(tuple(scheduled), tuple(preempted), self.blocks.take_copies())

    def complete(self, plan: StepPlan, sampled: Mapping[int, int]) -> None:
        """Note that a plan was computed. ``sampled`` has, by id, the token of each that wanted logits.

        Sequences that were finished since the plan was made are left alone.
        """
        for item in plan.scheduled:
            sequence = item.sequence
            if sequence.status is not Status.RUNNING:
                continue
            self.blocks.advance(sequence, item.n_new)
            sequence.n_computed = max(sequence.n_computed, sequence.n_cached)
            if item.wants_logits:
                assert sequence.n_tokens < self.n_ctx, "the sequence should have been finished"
                sequence.token_ids.append(sampled[sequence.id])
                self.blocks.name_blocks(sequence)

    def finish(self, sequence: Sequence) -> None:
        """End a sequence, wherever it is: slot and blocks are free at once. Twice is as good as once."""
        if self._known.pop(sequence.id, None) is None:
            return
        if sequence.status is Status.RUNNING:
            self.running.remove(sequence)
            self.blocks.release(sequence)
        else:
            self.waiting.remove(sequence)
        sequence.status = Status.FINISHED

    def abort(self, sequence_id: int) -> Sequence | None:
        """End the sequence of that id and return it; ``None`` if there is none, as when it just finished."""
        sequence = self._known.get(sequence_id)
        if sequence is not None:
            self.finish(sequence)
        return sequence

    def check(self) -> None:
        """Assert that all books are consistent. Slow: for tests."""
        for queue, status in ((self.running, Status.RUNNING), (self.waiting, Status.WAITING)):
            assert all(sequence.status is status for sequence in queue)
            assert queue == sorted(queue, key=_ORDER), "a queue is out of order"
        assert {s.id: s for s in self.running + self.waiting} == self._known, "a sequence is lost"
        assert len(self.running) + len(self.waiting) == len(self._known), "a sequence is in two queues"
        assert len(self.running) <= self.config.max_sequences
        assert all(s.n_uncached >= 1 for s in self._known.values()), "a sequence has nothing to compute"
        assert all(not s.block_table and s.n_cached == 0 for s in self.waiting), "a waiting one holds blocks"
        self.blocks.check(self.running)

    def _overflow(self, n_prompt: int) -> str:
        if self.n_ctx == self.config.n_ctx:
            return (
                f"the prompt has {n_prompt} tokens and the context window holds {self.n_ctx}, the answer "
                "included; shorten the prompt or use a larger --ctx"
            )
        return (
            f"the prompt has {n_prompt} tokens and the cache holds {self.n_ctx} ({self.blocks.num_blocks} "
            f"blocks of {self.blocks.block_tokens}), the answer included; shorten the prompt or enlarge "
            "the cache"
        )

    def _decode_rows(self, preempted: list[Sequence]) -> list[ScheduledSequence]:
        scheduled: list[ScheduledSequence] = []
        for sequence in tuple(self.running):
            if sequence.n_uncached > 1:
                continue
            while sequence.status is Status.RUNNING and not self.blocks.grow(sequence):
                # The last in order has not been scheduled yet, or is this sequence itself.
                preempted.append(self._preempt(self.running[-1]))
            if sequence.status is Status.RUNNING:
                self._schedule(sequence, 1, scheduled)
        return scheduled

    def _schedule(self, sequence: Sequence, budget: int, scheduled: list[ScheduledSequence]) -> int:
        n_new = min(budget, sequence.n_uncached)
        scheduled.append(ScheduledSequence(sequence, n_new, n_new == sequence.n_uncached))
        return n_new

    def _preempt(self, sequence: Sequence) -> Sequence:
        self.running.remove(sequence)
        self.blocks.release(sequence)
        sequence.status = Status.WAITING
        sequence.n_preempted += 1
        self._n_preemptions += 1
        insort(self.waiting, sequence, key=_ORDER)
        return sequence

    def _admit(self, budget: int, scheduled: list[ScheduledSequence]) -> None:
        if budget == 0 or not self.waiting or len(self.running) == self.config.max_sequences:
            return
        coming = {key for sequence in self.running for key in self._uncomputed(sequence)}
        for sequence in tuple(self.waiting):
            if budget == 0 or len(self.running) == self.config.max_sequences:
                return
            if self.blocks.first_missing(sequence) in coming:
                continue
            if not self.blocks.admit(sequence, self._reserve(sequence)):
                return
            if sequence.n_preempted == 0:
                sequence.n_reused = sequence.n_cached
            self.waiting.remove(sequence)
            insort(self.running, sequence, key=_ORDER)
            sequence.status = Status.RUNNING
            coming.update(self._uncomputed(sequence))
            budget -= self._schedule(sequence, budget, scheduled)

    def _uncomputed(self, sequence: Sequence) -> list[bytes]:
        """The keys of the full blocks that a running sequence is about to compute."""
        return sequence.block_keys[sequence.n_cached // self.blocks.block_tokens :]

    def _reserve(self, newcomer: Sequence) -> int:
        """Blocks to leave for growth, so that whoever is admitted is not preempted right away.

        A block for each sequence that may still grow; for one that was preempted often, all that it and the
        running ones may ever need, so that none of them has to go.
        """
        known = self.blocks.blocks_for(newcomer.n_tokens)
        growth = [self._final_blocks(s) - len(s.block_table) for s in self.running]
        growth.append(self._final_blocks(newcomer) - known)
        if newcomer.n_preempted >= MAX_PREEMPTIONS:
            return sum(growth)
        return sum(n > 0 for n in growth)

    def _final_blocks(self, sequence: Sequence) -> int:
        """Blocks of a sequence at its longest: its last token is never computed."""
        longest = sequence.n_prompt + sequence.request.max_tokens
        return self.blocks.blocks_for(min(longest, self.n_ctx) - 1)
