"""What a sequence says about itself."""

import pytest

from nanollama.engine.sequence import Sequence, Status
from nanollama.types import Request, SamplingParams


def sequence(n_prompt: int = 4, **request) -> Sequence:
    fields = {"max_tokens": 8, "stop_ids": frozenset(), **request}
    return Sequence(1, Request(tuple(range(n_prompt)), SamplingParams(), **fields), arrival=0.0, seed=7)


def test_a_new_sequence_waits_with_nothing_computed():
    new = sequence(4)
    assert (new.status, new.n_tokens, new.n_prompt, new.n_generated) == (Status.WAITING, 4, 4, 0)
    assert (new.n_cached, new.n_uncached, new.block_table, new.block_keys) == (0, 4, [], [])


def test_counts_follow_the_tokens():
    decoding = sequence(4)
    decoding.token_ids += [50, 51]
    decoding.n_cached = 5
    assert (decoding.n_tokens, decoding.n_prompt, decoding.n_generated, decoding.n_uncached) == (6, 4, 2, 1)


def test_generated_tokens_do_not_reach_the_request():
    decoding = sequence(4)
    decoding.token_ids.append(50)
    assert decoding.request.prompt_ids == (0, 1, 2, 3)


@pytest.mark.parametrize(
    ("prompt_logprobs", "n_computed", "expected"),
    [
        (None, 0, 9),  # all but the last, whose logits are wanted
        (None, 6, 9),
        (0, 0, 0),  # logits of every prompt token are wanted
        (5, 6, 6),  # those before were given before a preemption
        (5, 10, 9),
    ],
)
def test_what_may_be_reused_leaves_the_logits_that_are_wanted(prompt_logprobs, n_computed, expected):
    reusing = sequence(10, prompt_logprobs=prompt_logprobs)
    reusing.n_computed = n_computed
    assert reusing.max_reusable == expected


def test_order_is_priority_then_arrival_then_id():
    def make(id, arrival, priority):
        request = Request((1,), SamplingParams(), 8, frozenset(), priority=priority)
        return Sequence(id, request, arrival, seed=0)

    made = [make(1, 0.0, 1), make(4, 2.0, 0), make(9, 5.0, -1), make(3, 2.0, 0), make(8, 1.0, 0)]
    assert [s.id for s in sorted(made, key=lambda s: s.order)] == [9, 8, 3, 4, 1]
