"""The sampler against a slow twin that follows the definition in plain Python, one step at a time."""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from nanollama.errors import UsageError
from nanollama.sampling.edits import Edits, edited
from nanollama.sampling.params import DEFAULTS, SETTINGS, model_settings, sampling_params
from nanollama.sampling.processors import min_p_count, top_k, top_p_count
from nanollama.sampling.random import philox, uniform
from nanollama.sampling.sampler import choose, n_candidates, sample
from nanollama.types import SamplingParams

VOCAB = 32


def slow_sample(logits: NDArray[np.float32], p: SamplingParams, context: Sequence[int], seed: int) -> int:
    """The definition, written out: a dictionary of candidates that only ever loses members."""
    scores = {i: float(x) + p.logit_bias.get(i, 0.0) for i, x in enumerate(logits)}
    latest = (
        list(context) if p.repeat_last_n is None else list(context)[max(0, len(context) - p.repeat_last_n) :]
    )
    for token, times in Counter(latest).items():
        x, repeat = scores[token], p.repeat_penalty or 1.0
        x = x / repeat if x > 0 else x * repeat
        scores[token] = x - times * (p.frequency_penalty or 0.0) - (p.presence_penalty or 0.0)
    ranked = sorted(scores, key=lambda i: (-scores[i], i))
    if p.temperature == 0:
        return ranked[0]
    ranked = ranked[: p.top_k or len(ranked)]
    if p.top_p is not None:
        weights = [math.exp(scores[i] - scores[ranked[0]]) for i in ranked]
        kept, mass = 0, 0.0
        while kept < len(ranked) and mass < p.top_p * sum(weights):
            mass += weights[kept]
            kept += 1
        ranked = ranked[: max(1, kept)]
    if p.min_p is not None:
        best = scores[ranked[0]]
        ranked = [i for i in ranked if math.exp(scores[i] - best) >= p.min_p]
    weights = [math.exp((scores[i] - scores[ranked[0]]) / p.temperature) for i in ranked]
    point = uniform(seed, len(context)) * sum(weights)
    for i, weight in zip(ranked, weights, strict=True):
        point -= weight
        if point < 0:
            return i
    return ranked[-1]


optional = {
    "repeat_penalty": st.none() | st.sampled_from([0.5, 1.1, 2.0]),
    "frequency_penalty": st.none() | st.sampled_from([-0.5, 0.25, 1.0]),
    "presence_penalty": st.none() | st.sampled_from([-0.5, 0.25, 1.0]),
    "repeat_last_n": st.none() | st.integers(0, 12),
    "top_k": st.none() | st.integers(1, VOCAB + 5),
    "top_p": st.none() | st.sampled_from([0.05, 0.3, 0.55, 0.95]),
    "min_p": st.none() | st.sampled_from([0.02, 0.21, 0.9]),
    "temperature": st.sampled_from([0.0, 0.3, 0.8, 1.7]),
    "logit_bias": st.dictionaries(st.integers(0, VOCAB - 1), st.sampled_from([-5.0, 0.75, 3.0]), max_size=3),
}


@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    logits_seed=st.integers(0, 10_000),
    context=st.lists(st.integers(0, VOCAB - 1), max_size=20),
    seed=st.integers(0, 2**64 - 1),
    values=st.fixed_dictionaries(optional),
)
def test_sampling_equals_its_slow_twin(logits_seed: int, context: list[int], seed: int, values: dict) -> None:
    logits = np.random.default_rng(logits_seed).normal(0, 3, VOCAB).astype(np.float32)
    params = SamplingParams(**values)
    assert sample(logits, params, context, seed) == slow_sample(logits, params, context, seed)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    logits_seed=st.integers(0, 10_000),
    context=st.lists(st.integers(0, VOCAB - 1), max_size=20),
    forbidden=st.lists(st.integers(0, VOCAB - 1), max_size=3),
    seed=st.integers(0, 2**64 - 1),
    more=st.integers(0, 9),
    values=st.fixed_dictionaries(optional),
)
def test_a_choice_among_the_highest_is_the_choice_among_all(
    logits_seed: int, context: list[int], forbidden: list[int], seed: int, more: int, values: dict
) -> None:
    logits = np.random.default_rng(logits_seed).normal(0, 3, VOCAB).astype(np.float32)
    params = SamplingParams(**values)
    expected = sample(logits, params, context, seed, forbidden=forbidden)
    edits = Edits()
    edits.add_row(params, context, forbidden)
    (logits,) = edited(logits[None], edits)
    k = n_candidates(params)
    ids = np.argsort(-logits, kind="stable")[: None if k is None else k + more]
    assert choose(ids, logits[ids], params, len(context), seed) == expected


def test_sampled_frequencies_follow_the_probabilities() -> None:
    """Chi-squared over 20,000 draws with 7 degrees of freedom; false alarm probability about 1e-6."""
    logits = np.log(np.array([0.3, 0.2, 0.15, 0.1, 0.1, 0.08, 0.05, 0.02], dtype=np.float32))
    params = SamplingParams(temperature=1.0)
    draws = Counter(sample(logits, params, range(n), seed=7) for n in range(20_000))
    expected = np.exp(logits.astype(np.float64)) * 20_000
    chi2 = sum((draws[i] - expected[i]) ** 2 / expected[i] for i in range(8))
    assert chi2 < 41.0


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_sampling_leaves_the_logits_alone(temperature: float) -> None:
    logits = np.arange(8, dtype=np.float32)
    before = logits.copy()
    params = SamplingParams(
        temperature=temperature,
        logit_bias={1: 2.0},
        repeat_penalty=1.3,
        frequency_penalty=0.5,
        top_k=3,
        top_p=0.9,
    )
    sample(logits, params, [1, 2, 3], seed=1)
    assert np.array_equal(logits, before)


def test_a_forbidden_token_never_appears() -> None:
    logits = np.zeros(4, dtype=np.float32)
    params = SamplingParams(temperature=1.0, logit_bias={2: -math.inf})
    assert 2 not in {sample(logits, params, range(n), seed=3) for n in range(500)}


def test_equal_logits_rank_by_id_and_top_k_cuts_among_them() -> None:
    assert top_k(np.array([1, 5, 5, 5, 0], dtype=np.float32), 2).tolist() == [1, 2]
    assert top_k(np.array([1, 5, 5, 5, 0], dtype=np.float32), None).tolist() == [1, 2, 3, 0, 4]


@pytest.mark.parametrize("size", [1, 63, 64, 65, 1000, 5000])
@pytest.mark.parametrize("k", [1, 2, 15, 16, 70, 900, 6000])
def test_top_k_is_a_stable_sort_cut_off(size: int, k: int) -> None:
    rng = np.random.default_rng(size * k)
    for logits in (rng.standard_normal(size), rng.integers(-9, 9, size), np.sort(rng.standard_normal(size))):
        logits = logits.astype(np.float32)
        logits[rng.integers(0, size, size // 8)] = -np.inf
        assert top_k(logits, k).tolist() == np.argsort(-logits, kind="stable")[:k].tolist()


@pytest.mark.parametrize(("p", "kept"), [(0.4, 1), (0.51, 2), (0.76, 3), (1.0, 4), (0.0, 1)])
def test_top_p_keeps_the_token_that_crosses_the_line(p: float, kept: int) -> None:
    logits = np.log(np.array([0.5, 0.25, 0.125, 0.125], dtype=np.float32))
    assert min(4, top_p_count(logits, p)) == kept


@pytest.mark.parametrize(("p", "kept"), [(0.6, 1), (0.49, 2), (0.2, 4)])
def test_min_p_is_relative_to_the_best(p: float, kept: int) -> None:
    logits = np.log(np.array([0.5, 0.25, 0.125, 0.125], dtype=np.float32))
    assert min_p_count(logits, p) == kept


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        # Known answers of the Random123 distribution for philox4x32-10.
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_its_known_answers(counter: tuple, key: tuple, words: tuple) -> None:
    assert philox(counter, key) == words


def test_uniform_numbers_depend_on_seed_and_position_and_stay_below_one() -> None:
    numbers = {uniform(seed, position) for seed in (0, 1, -1, 2**63) for position in range(100)}
    assert len(numbers) == 400
    assert all(0 <= x < 1 for x in numbers)


def test_unset_settings_come_from_the_model_and_then_from_the_defaults() -> None:
    params = sampling_params({"top_k": 7, "top_p": None}, {"top_p": 0.5, "top_k": 3}, vocab_size=10)
    assert (params.top_k, params.top_p, params.temperature) == (7, 0.5, DEFAULTS["temperature"])
    assert (params.repeat_penalty, params.repeat_last_n, params.min_p) == (1.1, 64, None)


def test_settings_can_be_switched_off() -> None:
    given = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "repeat_penalty": 1.0, "repeat_last_n": -1}
    params = sampling_params(given, {}, vocab_size=10)
    assert (params.top_k, params.top_p, params.min_p, params.repeat_penalty, params.repeat_last_n) == (
        None,
    ) * 5


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[(name, bad) for name in SETTINGS for bad in ("1", True, math.nan, math.inf, 1e300, [1])],
        ("top_k", 1.5),
        ("top_k", -1),
        ("top_p", 1.01),
        ("temperature", -0.1),
        ("repeat_last_n", -2),
        ("seed", 2**64),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=name):
        sampling_params({name: value}, {}, vocab_size=10)


@pytest.mark.parametrize(
    "bias", [{10: 1.0}, {-1: 1.0}, {"1": 1.0}, {1: math.nan}, {1: math.inf}, {True: 1.0}, [1]]
)
def test_a_bad_logit_bias_is_refused(bias: object) -> None:
    with pytest.raises(UsageError, match="logit_bias"):
        sampling_params({"logit_bias": bias}, {}, vocab_size=10)


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(UsageError, match="temprature"):
        sampling_params({"temprature": 1.0}, {}, vocab_size=10)


def test_recommended_settings_are_read_from_the_file() -> None:
    metadata = {"general.sampling.temp": 0.6, "general.sampling.top_k": 20, "general.name": "x"}
    assert model_settings(metadata) == {"temperature": 0.6, "top_k": 20}
