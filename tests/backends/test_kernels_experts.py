"""The two ends of a mixture of experts against float64: the choice of experts, and the weighted sum."""

import ctypes

import numpy as np
import pytest
from numpy.typing import NDArray

from nanollama.backends.native.library import Kernels, Routing

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]


def route(
    kernels: Kernels, scores: Floats, per_token: int, normalized: bool, *, at_once: int = 3
) -> tuple[Ints, Floats]:
    rows, experts = scores.shape
    chosen, shares = np.full((rows, per_token), -1, np.int32), np.full((rows, per_token), 99, np.float32)
    routing = Routing(
        experts=experts,
        per_token=per_token,
        normalized=normalized,
        chosen=chosen.ctypes.data,
        shares=shares.ctypes.data,
    )
    for begin in range(0, rows, at_once):
        kernels.route(ctypes.byref(routing), scores.ctypes.data, experts, begin, min(begin + at_once, rows))
    return chosen, shares


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize(
    ("experts", "per_token"), [(1, 1), (4, 2), (8, 8), (13, 3), (60, 4), (128, 8), (256, 8), (1000, 40)]
)
@pytest.mark.parametrize("size", [0.0, 1.0, 50.0, 1e4])
def test_shares_are_the_softmax_of_the_best_scores(
    kernels: Kernels, experts: int, per_token: int, normalized: bool, size: float
) -> None:
    rng = np.random.default_rng(experts)
    scores = (rng.standard_normal((7, experts)) * size).astype(np.float32)
    scores[3] = rng.integers(-1, 2, experts)  # many are equal: the first of them are taken
    chosen, shares = route(kernels, scores, per_token, normalized)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :per_token]
    np.testing.assert_array_equal(chosen, order)
    wide = scores.astype(np.float64)
    best = np.take_along_axis(wide, order, axis=1)
    weights = np.exp(best - best[:, :1])
    total = (weights if normalized else np.exp(wide - best[:, :1])).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(shares, weights / total, rtol=2e-6, atol=1e-30)


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("broken", [[0], [5], range(1, 9), range(9)])
def test_a_score_that_is_no_number_shows_in_every_share(
    kernels: Kernels, normalized: bool, broken: list[int]
) -> None:
    scores = np.random.default_rng(0).standard_normal((3, 9)).astype(np.float32)
    scores[1, list(broken)] = np.nan
    chosen, shares = route(kernels, scores, 2, normalized)
    assert np.isnan(shares[1]).all()
    assert np.isfinite(shares[[0, 2]]).all()
    assert ((chosen >= 0) & (chosen < 9)).all()


def test_a_score_of_minus_infinity_has_no_share(kernels: Kernels) -> None:
    scores = np.full((1, 5), -np.inf, np.float32)
    scores[0, 2] = 1
    chosen, shares = route(kernels, scores, 3, True)
    assert (chosen.tolist(), shares.tolist()) == ([[2, 0, 1]], [[1, 0, 0]])


@pytest.mark.parametrize("cols", [1, 8, 39, 64])
@pytest.mark.parametrize("per_token", [1, 2, 5])
def test_a_row_is_the_sum_of_its_shares_in_order(kernels: Kernels, cols: int, per_token: int) -> None:
    rng = np.random.default_rng(cols)
    rows = 6
    places = rng.permutation(rows * per_token).astype(np.int32).reshape(rows, per_token)
    shares = rng.uniform(0, 1, places.shape).astype(np.float32)
    x = rng.standard_normal((rows * per_token, cols)).astype(np.float32)
    routing = Routing(per_token=per_token, places=places.ctypes.data, shares=shares.ctypes.data)
    out = np.full((rows, cols), np.nan, np.float32)
    for begin, end in ((4, 6), (0, 4)):
        kernels.combine(ctypes.byref(routing), x.ctypes.data, cols, cols, out.ctypes.data, cols, begin, end)
    expected = np.einsum("rj,rjc->rc", shares.astype(np.float64), x.astype(np.float64)[places])
    np.testing.assert_allclose(out, expected, rtol=0, atol=2e-6)
    # The same row elsewhere, and its choices at other places, is the same to the bit.
    order = rng.permutation(rows * per_token)
    moved = np.empty_like(x)
    moved[order] = x
    places[:] = order[places][::-1]
    shares[:] = shares[::-1].copy()
    again = np.full_like(out, np.nan)
    kernels.combine(ctypes.byref(routing), moved.ctypes.data, cols, cols, again.ctypes.data, cols, 0, rows)
    np.testing.assert_array_equal(again[::-1], out)
