"""The scheduler's decisions: who runs, who waits, who makes room."""

from collections import Counter

import pytest

from nanollama.engine.scheduler import MAX_PREEMPTIONS, Scheduler, SchedulerConfig, StepPlan
from nanollama.engine.sequence import Sequence, Status
from nanollama.errors import ContextOverflowError, UsageError
from sequences import SIZE, scheduler, sequence


def add(to: Scheduler, *sequences: Sequence) -> None:
    for one in sequences:
        to.add(one)


def shape(plan: StepPlan) -> list[tuple[int, int, bool]]:
    return [(item.sequence.id, item.n_new, item.wants_logits) for item in plan.scheduled]


def step(on: Scheduler, token: int = 99) -> list[tuple[int, int, bool]]:
    """Plan and complete one step; every sequence that reached its limit ends."""
    plan = on.plan()
    on.check()
    on.complete(plan, {item.sequence.id: token for item in plan.scheduled if item.wants_logits})
    on.check()
    for item in plan.scheduled:
        done = item.sequence
        if done.n_generated == done.request.max_tokens or done.n_tokens == on.n_ctx:
            on.finish(done)
    return shape(plan)


def prompt(start: int, n: int) -> range:
    """Prompts with different starts share nothing."""
    return range(1000 * start, 1000 * start + n)


def test_a_prompt_runs_in_chunks_and_then_a_token_a_step():
    s = scheduler(budget=16)
    one = sequence(1, prompt(1, 40), max_tokens=3)
    s.add(one)
    steps = [step(s) for _ in range(5)]
    assert steps == [[(1, 16, False)], [(1, 16, False)], [(1, 8, True)], [(1, 1, True)], [(1, 1, True)]]
    assert one.token_ids == [*prompt(1, 40), 99, 99, 99]
    assert one.status is Status.FINISHED
    assert not s.has_work


def test_decode_rows_come_first_and_prompts_share_what_is_left():
    s = scheduler(budget=16)
    add(s, sequence(1, prompt(1, 6)), sequence(2, prompt(2, 6)))
    assert step(s) == [(1, 6, True), (2, 6, True)]
    add(s, sequence(3, prompt(3, 20)), sequence(4, prompt(4, 20)))
    assert step(s) == [(1, 1, True), (2, 1, True), (3, 14, False)]
    assert step(s) == [(1, 1, True), (2, 1, True), (3, 6, True), (4, 8, False)]
    assert step(s) == [(1, 1, True), (2, 1, True), (3, 1, True), (4, 12, True)]


def test_waiting_sequences_come_in_by_priority_then_arrival():
    s = scheduler(max_sequences=1, budget=64)
    add(
        s,
        sequence(1, prompt(1, 5), 1, arrival=3.0),
        sequence(2, prompt(2, 5), 1, arrival=2.0),
        sequence(3, prompt(3, 5), 1, arrival=9.0, priority=-1),
        sequence(4, prompt(4, 5), 1, arrival=1.0, priority=1),
    )
    assert [step(s)[0][0] for _ in range(4)] == [3, 2, 1, 4]


def test_a_partly_computed_prompt_goes_on_before_a_new_one_of_higher_priority():
    s = scheduler(budget=16)
    s.add(sequence(1, prompt(1, 30)))
    step(s)
    s.add(sequence(2, prompt(2, 30), priority=-5))
    assert step(s) == [(1, 14, True), (2, 2, False)]


@pytest.mark.parametrize(
    ("options", "n_prompt", "message"),
    [
        ({"n_ctx": 32}, 32, "the prompt has 32 tokens and the context window holds 32"),
        ({"n_ctx": 32}, 500, "the prompt has 500 tokens and the context window holds 32"),
        ({"num_blocks": 5}, 20, r"the prompt has 20 tokens and the cache holds 20 \(5 blocks of 4\)"),
    ],
)
def test_what_can_never_fit_is_refused_with_the_numbers(options, n_prompt, message):
    s = scheduler(**options)
    with pytest.raises(ContextOverflowError, match=message):
        s.add(sequence(1, prompt(1, n_prompt)))
    assert not s.has_work
    assert s.n_ctx in (20, 32)
    s.add(sequence(2, prompt(1, s.n_ctx - 1), max_tokens=100))
    while s.has_work:
        step(s)


def test_an_empty_prompt_is_refused():
    with pytest.raises(UsageError, match="no tokens"):
        scheduler().add(sequence(1, ()))


@pytest.mark.parametrize("max_sequences", [0, 17])
def test_more_sequences_than_tokens_in_a_step_are_refused(max_sequences):
    with pytest.raises(UsageError, match=f"{max_sequences} sequences.*expected 1 to 16"):
        SchedulerConfig(max_sequences, 16, 128)


def test_a_large_request_is_not_overtaken_for_ever():
    s = scheduler(num_blocks=10, max_sequences=4, budget=64)
    s.add(sequence(0, prompt(0, 8), max_tokens=12))
    step(s)
    add(s, sequence(1, prompt(1, 32), 4), *(sequence(i, prompt(i, 4), 2) for i in range(2, 6)))
    admitted = []
    while s.has_work:
        before = {w.id for w in s.waiting}
        step(s)
        admitted += sorted(before - {w.id for w in s.waiting})
    assert admitted[0] == 1


def test_the_youngest_makes_room_and_computes_its_tokens_again():
    s = scheduler(num_blocks=6, budget=32)
    old, young = sequence(1, prompt(1, 7), max_tokens=10), sequence(2, prompt(2, 7), max_tokens=10)
    add(s, old, young)
    assert step(s) == [(1, 7, True), (2, 7, True)]
    while not young.n_preempted:
        assert step(s)[0][:2] == (1, 1)
    assert young.status is Status.WAITING
    assert (young.block_table, young.n_cached) == ([], 0)
    kept = list(young.token_ids)
    while old.status is not Status.FINISHED:
        step(s)
    assert young.token_ids == kept
    n_found = s.stats.tokens_found
    assert step(s) == [(2, len(kept) - (s.stats.tokens_found - n_found), True)]
    assert young.token_ids == [*kept, 99]
    while s.has_work:
        step(s)
    assert young.token_ids == [*prompt(2, 7), *[99] * 10]
    assert (old.n_preempted, young.n_preempted, s.stats.n_preemptions) == (0, 1, 1)


def test_a_lower_priority_makes_room_before_a_later_arrival():
    s = scheduler(num_blocks=6, budget=32)
    add(s, sequence(1, prompt(1, 7), 10, priority=1), sequence(2, prompt(2, 7), 10))
    plan = s.plan()
    while not plan.preempted:
        s.complete(plan, {1: 5, 2: 5})
        plan = s.plan()
    assert [p.id for p in plan.preempted] == [1]


def test_nobody_is_preempted_more_than_a_few_times():
    """The demand is a multiple of the cache: whoever comes back too early computes in vain, over and over."""
    s = scheduler(num_blocks=40, max_sequences=16, budget=32)
    sequences = [sequence(i, prompt(i, 4 + i % 5), max_tokens=100) for i in range(16)]
    add(s, *sequences)
    ended: list[int] = []
    while s.has_work:
        ended += [i for i, _, _ in step(s) if sequences[i].status is Status.FINISHED]
    assert ended == list(range(16))
    assert s.stats.n_preemptions > 0
    assert max(q.n_preempted for q in sequences) <= MAX_PREEMPTIONS


@pytest.mark.parametrize(
    ("num_blocks", "running_tokens", "new_tokens", "n_preempted", "admitted"),
    [
        (4, 4, 3, 0, True),  # 2 blocks each, and neither ever needs a third
        (4, 5, 3, 0, False),  # the running one does
        (4, 4, 4, 0, False),  # the new one does
        (5, 5, 3, 0, True),
        (5, 5, 4, 0, False),
        (6, 5, 4, 0, True),
        (6, 30, 4, 2, True),  # a block each is left, though more will be needed
        (11, 30, 4, 3, False),  # 7 and 1 more will be needed
        (12, 30, 4, 3, True),
    ],
)
def test_admission_leaves_blocks_to_grow(num_blocks, running_tokens, new_tokens, n_preempted, admitted):
    s = scheduler(num_blocks=num_blocks)
    s.add(sequence(1, prompt(1, 5), max_tokens=running_tokens))
    step(s)
    new = sequence(2, prompt(2, 6), max_tokens=new_tokens)
    new.n_preempted = n_preempted
    s.add(new)
    step(s)
    assert (new.n_generated == 1) is admitted


def test_a_request_that_asks_for_no_tokens_gets_one():
    s = scheduler(num_blocks=4)
    s.add(sequence(1, prompt(1, 13), max_tokens=0))
    assert step(s) == [(1, 13, True)]


@pytest.mark.parametrize("n_prompt", [3, 8, 9, 31, 40])
def test_answers_to_one_prompt_compute_it_once(n_prompt):
    s = scheduler(budget=16)
    choices = [sequence(i, prompt(1, n_prompt), max_tokens=4) for i in range(6)]
    add(s, *choices)
    computed: Counter[int] = Counter()
    while s.has_work:
        computed.update({i: n for i, n, _ in step(s, token=50 + len(computed))})
    n_shared = (n_prompt - 1) // SIZE * SIZE
    # The first token comes from the prompt's last; of the 4 generated ones the last is never computed.
    assert computed == {i: n_prompt - (n_shared if i else 0) + 3 for i in range(6)}
    assert [c.n_reused for c in choices] == [0] + [n_shared] * 5


def test_a_sequence_behind_one_that_is_held_back_does_not_wait():
    s = scheduler(budget=16)
    add(s, sequence(1, prompt(1, 12)), sequence(2, prompt(1, 12)), sequence(3, prompt(3, 4)))
    assert step(s) == [(1, 12, True), (3, 4, True)]
    assert step(s) == [(1, 1, True), (3, 1, True), (2, 4, True)]


def test_only_the_shared_part_of_a_prompt_is_waited_for():
    s = scheduler(budget=8)
    add(s, sequence(1, prompt(1, 40)), sequence(2, [*prompt(1, 8), *prompt(2, 4)]))
    assert step(s) == [(1, 8, False)]
    s.abort(1)
    assert step(s) == [(2, 4, True)]


def test_who_is_held_back_goes_on_when_the_other_is_gone():
    s = scheduler(budget=8)
    add(s, sequence(1, prompt(1, 40)), sequence(2, prompt(1, 40)))
    assert step(s) == [(1, 8, False)]
    assert step(s) == [(1, 8, False)]
    s.abort(1)
    assert step(s) == [(2, 8, False)]
    assert s.running[0].n_reused == 16


def test_other_salts_and_scored_prompts_are_not_held_back():
    s = scheduler(budget=64)
    same = prompt(1, 12)
    add(s, sequence(1, same), sequence(2, same, salt="b"), sequence(3, same, prompt_logprobs=0))
    assert step(s) == [(1, 12, True), (2, 12, True), (3, 12, True)]


def test_a_scored_prompt_that_was_preempted_reuses_only_what_it_computed():
    s = scheduler(budget=10)
    add(s, sequence(1, prompt(1, 40), max_tokens=1), sequence(2, prompt(1, 40), prompt_logprobs=0))
    scored = s.waiting[1]
    for _ in range(5):
        step(s)
    assert (scored.n_cached, scored.n_computed, scored.n_reused) == (10, 10, 0)
    s._preempt(scored)
    step(s)
    assert (scored.n_cached, scored.n_computed) == (18, 18)  # two of its own blocks found, then 10 tokens
    s._preempt(scored)
    s.blocks.clear()
    step(s)
    assert (scored.n_cached, scored.n_computed) == (10, 18)
    while s.has_work:
        step(s)
    assert scored.n_reused == 0


@pytest.mark.parametrize("end", [lambda s, one: s.finish(one), lambda s, one: s.abort(one.id)])
@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_ending_a_sequence_frees_slot_and_blocks_at_once(end, steps):
    s = scheduler(budget=8)
    one = sequence(1, prompt(1, 12))
    s.add(one)
    for _ in range(steps):
        step(s)
    end(s, one)
    assert (one.status, one.block_table) == (Status.FINISHED, [])
    assert (s.has_work, s.running, s.waiting, s.stats.blocks_used) == (False, [], [], 0)
    s.check()
    end(s, one)


def test_aborting_what_is_not_there_returns_none():
    s = scheduler()
    one = sequence(1, prompt(1, 5))
    s.add(one)
    assert s.abort(2) is None
    assert s.abort(1) is one
    assert s.abort(1) is None


def test_a_sequence_ended_between_plan_and_complete_is_left_alone():
    s = scheduler()
    one, two = sequence(1, prompt(1, 8)), sequence(2, prompt(2, 8))
    add(s, one, two)
    plan = s.plan()
    s.abort(1)
    s.complete(plan, {2: 7})
    assert (one.n_cached, one.n_generated) == (0, 0)
    assert two.token_ids[-1] == 7
    s.check()


def test_a_failed_step_can_be_planned_again():
    s = scheduler()
    add(s, sequence(1, prompt(1, 20)), sequence(2, prompt(2, 4)))
    step(s)
    planned = s.plan()
    assert shape(s.plan()) == shape(planned)


def test_stats_count_sequences_blocks_and_tokens():
    s = scheduler(num_blocks=16, max_sequences=1, budget=32)
    add(s, sequence(1, prompt(1, 9), 1), sequence(2, prompt(1, 9), 1), sequence(3, prompt(3, 4)))
    step(s)
    stats = s.stats
    assert (stats.n_running, stats.n_waiting, stats.tokens_looked_up, stats.tokens_found) == (0, 2, 9, 0)
    assert (stats.blocks_free, stats.blocks_cached, stats.blocks_used) == (14, 2, 0)
    step(s)
    assert (s.stats.n_waiting, s.stats.tokens_looked_up, s.stats.tokens_found) == (1, 18, 8)
