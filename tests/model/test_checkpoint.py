"""Packed tensors: a part of one is what numpy slices out of the whole, and nothing is read before it is
asked for.
"""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nanollama.model.checkpoint import PackedTensor
from nanollama.quant.encode import quantize
from nanollama.quant.formats import FORMATS


def stored(fmt: str, weights: NDArray[np.float32], **more: Any) -> PackedTensor:
    data = quantize(FORMATS[fmt], weights).tobytes()
    return PackedTensor("t", FORMATS[fmt], weights.shape, lambda: memoryview(data), **more)


def weights(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(0, 1, shape).astype(np.float32)


@pytest.mark.parametrize("fmt", ["F32", "F16", "BF16", "Q8_0", "Q4_1"])
def test_rows_are_a_slice_of_whole_rows(fmt: str) -> None:
    whole = stored(fmt, weights(12, 64))
    part = whole.rows(3, 8)
    assert part.shape == (5, 64)
    assert (part.float32() == whole.float32()[3:8]).all()
    assert (part.packed() == whole.packed()[3:8]).all()
    assert (part.rows(1, 2).float32() == whole.float32()[4:5]).all()


def test_rows_of_a_vector_are_its_elements() -> None:
    whole = stored("F32", weights(10))
    assert (whole.rows(2, 5).float32() == whole.float32()[2:5]).all()
    assert whole.rows(2, 5).shape == (3,)


def test_rows_are_counted_in_half_split_order() -> None:
    whole = stored("F16", weights(24, 8), paired_heads=3)
    assert (whole.rows(4, 20).float32() == whole.float32()[4:20]).all()


def test_taking_a_part_reads_nothing() -> None:
    def read() -> memoryview:
        raise AssertionError("read before it was asked for")

    tensor = PackedTensor("t", FORMATS["F32"], (6, 8), read)
    assert tensor.rows(2, 6).rows(0, 3).shape == (3, 8)


def test_a_part_releases_the_memory_of_the_whole() -> None:
    released = []
    tensor = PackedTensor(
        "t", FORMATS["F32"], (2, 4), lambda: memoryview(bytes(32)), release=lambda: released.append(1)
    )
    tensor.rows(0, 1).release()
    assert released == [1]
