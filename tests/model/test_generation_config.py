"""Generation settings of a folder: ours by name, ids of the end from wherever they stand, one sentence for
what is wrong.
"""

from typing import Any

import pytest

from nanollama.errors import FormatError
from nanollama.model.generation_config import generation_settings

GREEDY = {"temperature": 0.0, "repeat_penalty": 1.0}


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        ({}, {}),
        ({"temperature": 0.6, "top_p": 0.95, "do_sample": True}, {"temperature": 0.6, "top_p": 0.95}),
        ({"temperature": 0.7}, {"temperature": 0.7}),
        ({"top_k": 20, "min_p": 0.1}, {"top_k": 20, "min_p": 0.1}),
        ({"repetition_penalty": 1.1}, {"repeat_penalty": 1.1}),
        ({"temperature": None, "top_k": None}, {}),
        ({"do_sample": False}, GREEDY),
        ({"do_sample": False, "temperature": 0.6, "top_p": 0.9}, GREEDY),
        ({"do_sample": False, "repetition_penalty": 1.2}, {"temperature": 0.0, "repeat_penalty": 1.2}),
    ],
)  # fmt: skip
def test_settings_get_our_names(generation: dict[str, Any], expected: dict[str, float]) -> None:
    assert generation_settings(generation, {}).sampling == expected


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        ({}, {}, set()),
        ({"eos_token_id": 2}, {}, {2}),
        ({"eos_token_id": [2, 7, 9]}, {"eos_token_id": 3}, {2, 7, 9}),
        ({}, {"eos_token_id": [3, 4]}, {3, 4}),
        ({"eos_token_id": None}, {"eos_token_id": 3}, {3}),
    ],
)
def test_every_end_counts_and_config_stands_in(
    generation: dict[str, Any], config: dict[str, Any], expected: set[int]
) -> None:
    assert generation_settings(generation, config).stop_ids == expected


@pytest.mark.parametrize(
    ("generation", "message"),
    [
        ({"temperature": "warm"}, "temperature is 'warm'"),
        ({"temperature": -1}, "temperature is -1"),
        ({"top_p": 7}, "top_p is 7"),
        ({"top_k": 0.5}, "top_k is 0.5"),
        ({"top_k": True}, "top_k is True"),
        ({"do_sample": "no"}, "do_sample .* is 'no'"),
        ({"eos_token_id": "2"}, "eos_token_id is '2'"),
        ({"eos_token_id": [2, None]}, "eos_token_id is"),
        ({"eos_token_id": True}, "eos_token_id is True"),
    ],
)
def test_a_value_out_of_range_is_refused(generation: dict[str, Any], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        generation_settings(generation, {})
