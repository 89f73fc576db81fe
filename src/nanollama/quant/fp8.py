"""Matrices of 8-bit floats with scales: bytes and scales in, packed float32 or bfloat16 out.

The numbers are E4M3 (OCP 8-bit floating point specification 1.0; NaN, no infinity). A weight is its number
times the scale of its tensor, its row or its block of rows and columns.
"""

import numpy as np

from nanollama.quant.bits import Bytes, Floats
from nanollama.quant.formats import FORMATS, QuantFormat

_FAR = 64
"""Powers of two up to here, from here down, keep every product a normal bfloat16."""


def _e4m3() -> Floats:
    """What the 256 bytes stand for: sign, 4 bits of exponent, 3 of mantissa."""
    byte = np.arange(128)
    exponent, mantissa = byte >> 3, byte & 7
    magnitude = np.ldexp(
        np.where(exponent == 0, mantissa, mantissa + 8), np.maximum(exponent, 1) - 10
    ).astype(np.float32)
    magnitude[127] = np.nan
    return np.concatenate([magnitude, -magnitude])


E4M3 = _e4m3()


def exact_format(scales: Floats) -> QuantFormat:
    """bfloat16 where all scales are powers of two, so that no product needs more than the numbers' 4 bits."""
    mantissas, exponents = np.frexp(scales)
    exact = (mantissas == 0.5).all() and (np.abs(exponents) <= _FAR).all()
    return FORMATS["BF16" if exact else "F32"]


def packed(numbers: Bytes, scales: Floats, block: tuple[int, int], fmt: QuantFormat) -> Bytes:
    """The matrix ``[rows, columns]`` in a format that :func:`exact_format` gave.

    ``scales`` has one entry for each ``block`` of (rows, columns); the last ones may stand for less.
    """
    out = E4M3[numbers]
    for index, row_scales in enumerate(scales):
        start = index * block[0]
        out[start : start + block[0]] *= np.repeat(row_scales, block[1])[: out.shape[1]]
    if fmt.name == "F32":
        return out.reshape(-1).view(np.uint8)
    return (out.view(np.uint32) >> 16).astype("<u2").reshape(-1).view(np.uint8)
