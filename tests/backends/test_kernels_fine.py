"""Activations in words of 16 bits: what rounding to bytes leaves is not lost."""

import ctypes

import numpy as np
import pytest

from nanollama.backends.native.library import Activations, Kernels, Library
from packing import Inputs, decoded, matmul, pack, random_rows

FINE_STEPS = 254
TYPES = ("Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q5_K")


def fine_inputs(kernels: Kernels, values: np.ndarray) -> tuple[Inputs, np.ndarray]:
    """The inputs with words, and the values that these stand for ``[rows, cols]``."""
    values = np.ascontiguousarray(values, np.float32)
    rows, cols = values.shape
    quants, words = np.zeros((rows, cols), np.int8), np.zeros((rows, cols), np.int16)
    meta, sums = np.zeros((rows, cols // 32, 4), np.float32), np.zeros((rows, cols // 32), np.float32)
    struct = Activations(
        values.ctypes.data,
        cols,
        quants.ctypes.data,
        meta.ctypes.data,
        cols,
        words.ctypes.data,
        sums.ctypes.data,
    )
    kernels.quantize(ctypes.byref(struct), 0, rows * (cols // 32))
    result = Inputs(struct, values, quants, meta)
    result.keep = (words, sums)  # type: ignore[attr-defined]  # alive as long as the struct that points to them
    in_order = words.reshape(rows, -1, 4)[..., [0, 2, 1, 3]].reshape(rows, cols).astype(np.float64)
    restored = in_order / FINE_STEPS * np.repeat(meta[:, :, 0], 32, axis=1)
    blocks = restored.reshape(rows, -1, 32)
    assert (np.abs(sums - blocks.sum(-1)) <= 1e-6 * np.abs(blocks).sum(-1) + 1e-30).all()
    return result, restored


def values_of(rows: int, cols: int) -> np.ndarray:
    rng = np.random.default_rng(rows + cols)
    values = rng.standard_normal((rows, cols)).astype(np.float32)
    values[0, :32] = 0
    values[-1, :32] *= 1e-20
    values[-1, 32:64] *= 1e20
    return values


def test_words_give_the_value_back_250_times_as_well_as_bytes(kernels: Kernels) -> None:
    values = values_of(5, 512)
    result, restored = fine_inputs(kernels, values)
    steps = np.repeat(result.meta[:, :, 0], 32, axis=1).astype(np.float64)
    assert (np.abs(values - restored) <= steps * (0.5 / FINE_STEPS + 2e-6)).all()


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize(("rows", "cols"), [(8, 256), (19, 768), (40, 4096)])
@pytest.mark.parametrize("count", [1, 3, 17])
def test_a_product_is_that_of_the_words(
    kernel_library: Library, kernels: Kernels, kind: str, rows: int, cols: int, count: int
) -> None:
    source = random_rows(kind, rows, cols, np.random.default_rng(cols))
    weights = decoded(kind, source, cols).astype(np.float64)
    x, restored = fine_inputs(kernels, values_of(count, cols))
    out = matmul(kernels, pack(kernel_library, [(kind, source)], cols), x)
    bound = np.abs(restored) @ np.abs(weights).T
    assert (np.abs(out - restored @ weights.T) <= 2e-6 * bound + 1e-30).all()


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("cols", [1024, 4096, 16640])
def test_a_row_is_the_same_to_the_bit_in_any_batch(
    kernel_library: Library, kernels: Kernels, kind: str, cols: int
) -> None:
    source = random_rows(kind, 24, cols, np.random.default_rng(1))
    weights = pack(kernel_library, [(kind, source)], cols)
    values = values_of(23, cols)
    whole = matmul(kernels, weights, fine_inputs(kernels, values)[0])
    for row in range(23):
        alone = matmul(kernels, weights, fine_inputs(kernels, values[row : row + 1])[0])
        np.testing.assert_array_equal(alone[0], whole[row])


@pytest.mark.parametrize("kind", TYPES)
def test_a_row_is_the_same_to_the_bit_in_any_turn_of_rows(
    kernel_library: Library, kernels: Kernels, kind: str
) -> None:
    weights = pack(kernel_library, [(kind, random_rows(kind, 40, 256, np.random.default_rng(3)))], 256)
    values = values_of(300, 256)
    whole = matmul(kernels, weights, fine_inputs(kernels, values)[0])
    for row in (0, 131, 132, 251, 252, 299):
        alone = matmul(kernels, weights, fine_inputs(kernels, values[row : row + 1])[0])
        np.testing.assert_array_equal(alone[0], whole[row])


@pytest.mark.parametrize("count", [1, 5, 9])
def test_the_largest_integers_are_exact(kernel_library: Library, kernels: Kernels, count: int) -> None:
    """All weights -128 and all words at their ends: nothing saturates."""
    source = random_rows("Q8_0", 8, 32, np.random.default_rng(2))
    source.reshape(8, 34)[:, 2:] = 128  # -128
    weights = decoded("Q8_0", source, 32).astype(np.float64)
    values = np.full((count, 32), 126.4999, np.float32)
    values[:, 0] = 127.0  # the scale is 1, and the others leave nearly half a step
    x, restored = fine_inputs(kernels, values)
    out = matmul(kernels, pack(kernel_library, [("Q8_0", source)], 32), x)
    np.testing.assert_allclose(out, restored @ weights.T, rtol=1e-6)
