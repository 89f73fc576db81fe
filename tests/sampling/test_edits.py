"""Edits of logits: definitions, and many rows at once."""

from array import array
from math import inf

import numpy as np
import pytest

from nanollama.sampling.edits import Edits, edited
from nanollama.types import SamplingParams


def edits_of(*rows: tuple) -> Edits:
    edits = Edits()
    for row in rows:
        edits.add_row(*row)
    return edits


def test_penalties_follow_their_definitions() -> None:
    params = SamplingParams(repeat_penalty=2.0, frequency_penalty=0.5, presence_penalty=0.25)
    logits = np.array([[2.0, -2.0, 1.0]], np.float32)
    out = edited(logits, edits_of((params, [0, 0, 1])))
    assert out.tolist() == [[2.0 / 2 - 2 * 0.5 - 0.25, -2.0 * 2 - 0.5 - 0.25, 1.0]]
    assert logits.tolist() == [[2.0, -2.0, 1.0]]


def test_a_bias_is_added_before_the_penalties_and_alone_where_a_token_was_not_seen() -> None:
    params = SamplingParams(logit_bias={1: 2.5, 4: -1.0}, repeat_penalty=2.0, presence_penalty=1.0)
    out = edited(np.zeros((1, 8), np.float32), edits_of((params, [4, 7])))
    assert out.tolist() == [[0, 2.5, 0, 0, -1.0 * 2 - 1, 0, 0, -1.0]]


@pytest.mark.parametrize("penalty", ["repeat_penalty", "presence_penalty", "frequency_penalty"])
def test_only_the_latest_tokens_count(penalty: str) -> None:
    params = SamplingParams(**{penalty: 1.5}, repeat_last_n=2)
    out = edited(np.ones((1, 4), np.float32), edits_of((params, [0, 1, 1, 2])))
    assert [x < 1 for x in out[0]] == [False, True, True, False]


def test_rows_are_edited_one_by_one() -> None:
    rows = [
        (SamplingParams(repeat_penalty=1.5), [3, 3]),
        (SamplingParams(), [1, 2]),
        (SamplingParams(), [1, 2], [9]),
        (SamplingParams(frequency_penalty=1.5, repeat_last_n=1), [5, 6]),
    ]
    edits = edits_of(*rows)
    assert edits.rows().tolist() == [0, 2, 3]
    assert edits.token_ids == array("i", [3, 9, 6])
    logits = np.ones((4, 10), np.float32)
    expected = [edited(logits[i : i + 1], edits_of(row))[0].tolist() for i, row in enumerate(rows)]
    assert edited(logits, edits).tolist() == expected
    assert expected[2][9] == -inf


@pytest.mark.parametrize(
    "rows", [[], [(SamplingParams(), [1, 2])], [(SamplingParams(repeat_penalty=1.1), [])]]
)
def test_there_may_be_none(rows: list) -> None:
    assert not edits_of(*rows)
