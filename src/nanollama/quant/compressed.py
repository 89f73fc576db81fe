"""Integer matrices as compressed-tensors stores them: their tensors come in, codes and groups come out.

``weight_packed`` int32 ``[out, in * bits / 32]`` holds codes along the inputs, ``weight_zero_point`` int32
``[out * bits / 32, groups]`` along the outputs, both lowest bits first and raised by half their range, so
that none is negative; ``weight_scale`` is ``[out, groups]``. Unpacked they are int8.
"""

import numpy as np
from numpy.typing import NDArray

from nanollama.quant.bits import Bytes, Floats
from nanollama.quant.grouped import Groups, Order, Words, fields

_SIGN = 128  # what raises an int8 to a byte


def packed_groups(zero_point: Words | None, scales: Floats, order: Order | None, *, bits: int) -> Groups:
    """The groups of a packed layer. Without ``zero_point`` zero lies in the middle of the range."""
    rows = len(scales)
    if zero_point is None:
        zeros = np.full(scales.shape, 1 << (bits - 1), np.int16)
    else:
        zeros = np.ascontiguousarray(fields(zero_point.T, bits)[:, :rows].T).astype(np.int16)
    return Groups(zeros, scales, order)


def packed_codes(words: Words, bits: int, columns: int) -> Bytes:
    """The codes ``[out, in]`` of a packed layer."""
    return np.ascontiguousarray(fields(words, bits)[:, :columns])


def plain_groups(zero_point: NDArray[np.int8] | None, scales: Floats) -> Groups:
    """The groups of a layer of int8."""
    zeros = np.full(scales.shape, _SIGN, np.int16)
    return Groups(zeros if zero_point is None else zeros + zero_point, scales)


def plain_codes(numbers: Bytes) -> Bytes:
    """The codes of a layer of int8."""
    return numbers ^ np.uint8(_SIGN)
