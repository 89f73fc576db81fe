"""Edits and the highest logits of each row, on the kernels and on torch, against NumPy: equal to the bit."""

import ctypes
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from nanollama.backends import torch_choice
from nanollama.backends.native.library import Choice, Kernels, Library, LogitEdits
from nanollama.errors import BackendError
from nanollama.sampling.edits import Edits, edited
from nanollama.types import SamplingParams

Floats = NDArray[np.float32]
Chooser = Callable[[Floats, int, Edits], tuple[NDArray[np.int64], Floats]]


def native(kernels: Kernels) -> Chooser:
    def best(logits: Floats, k: int, edits: Edits) -> tuple[NDArray[np.int64], Floats]:
        rows, vocab = logits.shape
        x = np.full((rows, vocab + 3), 1e9, np.float32)  # what lies behind a row is not its own
        x[:, :vocab] = logits
        ids, values = np.full((rows, k), -1, np.int32), np.empty((rows, k), np.float32)
        addresses = {name: getattr(edits, name).buffer_info()[0] for name in Edits.__slots__}
        choice = Choice(LogitEdits(**addresses), k, ids.ctypes.data, values.ctypes.data)
        for row in range(rows):  # in any order, one by one
            kernels.choose(ctypes.byref(choice), x.ctypes.data, vocab + 3, vocab, row, row + 1)
        return ids.astype(np.int64), values

    return best


def on_torch(logits: Floats, k: int, edits: Edits) -> tuple[NDArray[np.int64], Floats]:
    given = torch.from_numpy(logits.copy())
    ids, values = torch_choice.highest(torch_choice.edited(given, edits), k)
    np.testing.assert_array_equal(given.numpy(), logits)
    return ids.numpy(), values.numpy()


@pytest.fixture(params=["portable", "avx2", "avx512", "torch"])
def best(request: pytest.FixtureRequest, kernel_library: Library) -> Chooser:
    if request.param == "torch":
        return on_torch
    try:
        return native(kernel_library.kernels(request.param))
    except BackendError:
        pytest.skip(f"this processor can't run the kernel variant {request.param}")


def slowly(logits: Floats, k: int, edits: Edits) -> tuple[NDArray[np.int64], Floats]:
    out = edited(logits, edits)
    order = np.argsort(-out, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(out, order, axis=1)


def random_edits(random: np.random.Generator, rows: int, vocab: int) -> Edits:
    edits = Edits()
    for _ in range(rows):
        ids, count = random.permutation(vocab).tolist(), int(random.integers(0, 9))
        params = SamplingParams(
            logit_bias={i: float(random.choice([1.5, 0.1, -7])) for i in ids[:count]},
            repeat_penalty=float(random.choice([1, 1.1, 1.3, 0.7])),
            frequency_penalty=float(random.choice([0, 0.3, -0.2])),
            presence_penalty=float(random.choice([0, 0.7])),
        )
        edits.add_row(params, random.integers(0, vocab, 20 * count).tolist(), ids[:2][: count // 4])
    return edits


def no_edits(rows: int) -> Edits:
    edits = Edits()
    for _ in range(rows):
        edits.add_row(SamplingParams(), [])
    return edits


@pytest.mark.parametrize("vocab", [1, 7, 8, 61, 1000, 4099])
@pytest.mark.parametrize("k", [1, 2, 50, 256])
def test_the_highest_are_those_of_a_sort(best: Chooser, vocab: int, k: int) -> None:
    random = np.random.default_rng(vocab * k)
    k = min(k, vocab)
    for logits in (
        random.standard_normal((5, vocab)),
        random.integers(-3, 3, (5, vocab)),  # many are equal, and -0.0 equals 0.0
        -np.zeros((2, vocab)),
        np.where(random.random((5, vocab)) < 0.5, -np.inf, random.standard_normal((5, vocab))),
        np.sort(random.standard_normal((3, vocab)) * 1e-40),
    ):
        logits = logits.astype(np.float32)
        for edits in (no_edits(len(logits)), random_edits(random, len(logits), vocab)):
            ids, values = best(logits, k, edits)
            expected_ids, expected = slowly(logits, k, edits)
            np.testing.assert_array_equal(ids, expected_ids)
            np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize("at", [0, 5, 8, 60])
@pytest.mark.parametrize("k", [1, 9])
@pytest.mark.parametrize("trouble", [np.nan, -np.nan])
def test_a_row_with_a_nan_says_so_and_the_others_stay_right(
    best: Chooser, at: int, k: int, trouble: float
) -> None:
    logits = np.random.default_rng(at).standard_normal((3, 61)).astype(np.float32)
    logits[1, at] = trouble
    ids, values = best(logits, k, no_edits(3))
    expected_ids, expected = slowly(logits, k, no_edits(3))
    assert np.isnan(values[1, 0])
    np.testing.assert_array_equal(ids[[0, 2]], expected_ids[[0, 2]])
    np.testing.assert_array_equal(values[[0, 2]], expected[[0, 2]])


def test_infinity_comes_first(best: Chooser) -> None:
    logits = np.zeros((1, 9), np.float32)
    logits[0, 4] = np.inf
    ids, values = best(logits, 2, no_edits(1))
    assert ids.tolist() == [[4, 0]]
    assert values.tolist() == [[np.inf, 0.0]]
