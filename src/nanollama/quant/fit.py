"""Finding block parameters: columns of weights come in, the scale and offset that restore them best go out.

A column of ``x``, float32 ``[k, n]``, is one block of k weights. It is decoded as ``scale * code + offset``
with integer codes in a range, and best means the smallest sum of squared errors. For given codes the best
parameters have a closed form (linear regression), so that the search is one over codes: each candidate is a
way to stretch the block over the range of codes, and its regression tells how much of the block it explains.
Blocks lie in columns because sums over blocks then run along whole vectors.
"""

import numpy as np

from nanollama.quant.bits import Floats

HALF_MAX = 65504.0
"""The largest finite float16."""

_SMALLEST = 1e-30  # a scale below it has no finite float32 inverse worth multiplying by

_ONE_CODE = np.float32(
    0.5
)  # below it all codes of a block are the same: one that differs spreads by nearly 1

_STRETCHES = np.arange(-1, 1.01, 0.25, dtype=np.float32)
"""By how many codes the largest weight of a symmetric block may be moved from the end of the range."""

_AFFINE_STRETCHES = np.arange(-1, 2.01, 0.5, dtype=np.float32)
_AFFINE_SHIFTS = (-0.5, 0.0, 0.5)
"""By how many codes the range of a block may be longer than that of its codes, and moved against it.

Measured on Gaussian, heavy-tailed and real weights: three times as many candidates gain one per cent more in
error, a third of them lose three.
"""


def to_half(values: Floats) -> Floats:
    """The nearest finite float16 numbers, as float32."""
    with np.errstate(under="ignore"):
        return np.clip(values, -HALF_MAX, HALF_MAX).astype(np.float16).astype(np.float32)


def inverse(values: Floats) -> Floats:
    """1 / values, and 0 where the value is 0 or nearly so."""
    inverses = np.zeros_like(values)
    np.divide(1, values, out=inverses, where=np.abs(values) > _SMALLEST)
    return inverses


def dot(a: Floats, b: Floats) -> Floats:
    """The dot product of each column of ``a`` with that of ``b``, ``[n]``."""
    products: Floats = np.einsum("ij,ij->j", a, b)
    return products


def codes_for(x: Floats, scale: Floats, low: int, high: int, offset: Floats | None = None) -> Floats:
    """The codes in ``[low, high]`` nearest to ``x``, as float32 of its shape; 0 where the scale is 0."""
    factor = inverse(scale)
    if offset is None:
        codes = x * factor
    else:
        codes = x - offset
        codes *= factor
    np.rint(codes, out=codes)
    np.clip(codes, low, high, out=codes)
    return codes


def error_of(x: Floats, codes: Floats, scale: Floats, offset: Floats | None = None) -> Floats:
    """The sum of squared errors of each column, ``[n]``."""
    residue = codes * scale
    if offset is not None:
        residue += offset
    residue -= x
    return dot(residue, residue)


def fit_scale(x: Floats, low: int, high: int) -> Floats:
    """Scales ``[n]`` for blocks without an offset; ``-low`` is ``high`` or one more.

    The weight of largest magnitude goes to ``low`` or near it, so that a scale may be negative: the longer
    end of the range is then where it is needed.
    """
    top, bottom = x.max(axis=0), x.min(axis=0)
    peak = np.where(top > -bottom, top, bottom)
    per_peak = inverse(peak)
    best: Floats = peak / np.float32(low)
    most = np.zeros_like(peak)
    codes = np.empty_like(x)
    for stretch in _STRETCHES:
        np.multiply(x, (low - stretch) * per_peak, out=codes)
        np.rint(codes, out=codes)
        np.clip(codes, low, high, out=codes)
        along = dot(codes, x)
        scale = along * inverse(dot(codes, codes))
        explained = along * scale  # what the regression takes off the sum of squares
        better = explained > most
        np.copyto(most, explained, where=better)
        np.copyto(best, scale, where=better)
    return best


def fit_scale_and_offset(x: Floats, high: int) -> tuple[Floats, Floats]:
    """Scales ``[n]``, none negative, and offsets ``[n]`` for blocks with codes from 0 to ``high``."""
    k = np.float32(len(x))
    top, bottom = x.max(axis=0), x.min(axis=0)
    mean = x.mean(axis=0)
    centred = x - mean
    per_range = inverse(top - bottom)
    middle = (top + bottom) / 2 - mean
    best, best_offset = (top - bottom) / np.float32(high), bottom.copy()
    most = np.zeros_like(top)
    codes = np.empty_like(x)
    for stretch in _AFFINE_STRETCHES:
        factor = (high + stretch) * per_range
        for shift in _AFFINE_SHIFTS:
            np.multiply(centred, factor, out=codes)
            codes += np.float32(high / 2 + shift) - middle * factor
            np.rint(codes, out=codes)
            np.clip(codes, 0, high, out=codes)
            total, along = codes.sum(axis=0), dot(codes, centred)
            spread = dot(codes, codes) - total * total / k
            scale = along * inverse(np.where(spread > _ONE_CODE, spread, 0))
            explained = along * scale
            better = explained > most
            np.copyto(most, explained, where=better)
            np.copyto(best, scale, where=better)
            np.copyto(best_offset, mean - scale * total / k, where=better)
    return best, best_offset


def columns(weights: Floats, size: int) -> Floats:
    """Weights ``[..., columns]``, contiguous, as blocks of ``size`` in the columns of ``[size, n]``."""
    return np.ascontiguousarray(weights.reshape(-1, size).T)
