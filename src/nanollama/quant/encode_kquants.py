"""Encoding to the formats with super-blocks of 256 weights: float32 weights come in, packed blocks are
written to ``out``.

``weights`` is float32 ``[n, 256]``, finite and within float16's range, and ``out`` uint8
``[n, block_bytes]``: the mirror of ``kquants``. Each group of 32 or 16 weights is fitted by itself first. Its
scale is then rounded to a multiple of the super-block's, and what rounding did to one parameter is made up
for by the next one.
"""

import numpy as np
from numpy.typing import NDArray

from nanollama.quant.bits import Bytes, Floats
from nanollama.quant.encode_legacy import put_halves
from nanollama.quant.fit import (
    codes_for,
    columns,
    dot,
    error_of,
    fit_scale,
    fit_scale_and_offset,
    inverse,
    to_half,
)

_NEIGHBOURS = [(ds, dm) for ds in (-1, 0, 1) for dm in (-1, 0, 1) if ds or dm]


def _round_to(values: Floats, step: Floats, low: int, high: int) -> Floats:
    """Integers in ``[low, high]`` that times ``step`` ``[n, 1]`` are nearest to ``values`` ``[n, k]``."""
    multiples: Floats = np.clip(np.rint(values * inverse(step)), low, high)
    return multiples


def _fit_groups(x: Floats, high: int) -> tuple[Floats, Floats]:
    """Scales and mins ``[n]``, none negative, for groups decoded as ``scale * code - min``."""
    scales, offsets = fit_scale_and_offset(x, high)
    # The same weights with the lowest code at 0: smaller mins leave the shared step of the mins finer.
    offsets += scales * codes_for(x, scales, 0, high, offsets).min(axis=0)
    above = offsets > 0  # all weights are positive: the format has no offset for that, so the best is none
    if above.any():
        scales[above] = _fit_positive(x[:, above], high)
        offsets[above] = 0
    return scales, 0 - offsets


def _fit_positive(x: Floats, high: int) -> Floats:
    """Scales for groups of positive weights that must begin at zero."""
    scale: Floats = x.max(axis=0) / np.float32(high)
    for _ in range(3):
        codes = codes_for(x, scale, 0, high)
        scale = dot(codes, x) * inverse(dot(codes, codes))
    return scale


class _AffineBlocks:
    """The parameters of super-blocks of 8 groups of 32: w = d * s * q - dmin * m, integers s and m below 64.

    ``x`` is ``[32, 8 * n]``, one group a column.
    """

    def __init__(self, x: Floats, high: int) -> None:
        self.x, self.high = x, high
        scales, mins = (values.reshape(-1, 8) for values in _fit_groups(x, high))
        self.d = to_half(scales.max(axis=1, keepdims=True) / np.float32(63))
        self.dmin = to_half(mins.max(axis=1, keepdims=True) / np.float32(63))
        self.s = _round_to(scales, self.d, 0, 63)
        self.m = _round_to(mins, self.dmin, 0, 63)
        codes = self.codes()
        # What rounding did to the mins, the scales can partly make up for.
        scales = dot(codes, x - self.offset) * inverse(dot(codes, codes))
        self.s = _round_to(scales.reshape(-1, 8), self.d, 0, 63)
        self._refit_steps()
        self._try_neighbours()
        self._refit_steps()

    @property
    def scale(self) -> Floats:
        return (self.d * self.s).reshape(-1)

    @property
    def offset(self) -> Floats:
        return (-self.dmin * self.m).reshape(-1)

    def codes(self) -> Floats:
        return codes_for(self.x, self.scale, 0, self.high, self.offset)

    def errors(self) -> Floats:
        """The squared error of each group ``[n, 8]``."""
        return error_of(self.x, self.codes(), self.scale, self.offset).reshape(-1, 8)

    def _refit_steps(self) -> None:
        """Regression for ``d`` and ``dmin`` over all 256 weights; kept where it is better."""
        codes, before = self.codes(), self.errors().sum(axis=1, keepdims=True)
        by_group = (dot(codes, self.x), dot(codes, codes), codes.sum(axis=0), self.x.sum(axis=0))
        qx, qq, q, total = (sums.reshape(-1, 8) for sums in by_group)

        def over_groups(values: Floats) -> NDArray[np.float64]:
            sums: NDArray[np.float64] = values.sum(axis=1, keepdims=True, dtype=np.float64)
            return sums

        ss, sm, mm = (
            over_groups(self.s**2 * qq),
            over_groups(self.s * self.m * q),
            over_groups(32 * self.m**2),
        )
        sx, mx = over_groups(self.s * qx), over_groups(self.m * total)
        determinant = ss * mm - sm * sm
        per = np.divide(1, determinant, out=np.zeros_like(determinant), where=determinant > 0)
        d = np.where(per > 0, (sx * mm - mx * sm) * per, self.d)
        dmin = np.where(per > 0, (sx * sm - mx * ss) * per, self.dmin)
        old_d, old_dmin = self.d, self.dmin
        self.d = to_half(np.maximum(d, 0).astype(np.float32))
        self.dmin = to_half(np.maximum(dmin, 0).astype(np.float32))
        worse = self.errors().sum(axis=1, keepdims=True) >= before
        np.copyto(self.d, old_d, where=worse)
        np.copyto(self.dmin, old_dmin, where=worse)

    def _try_neighbours(self) -> None:
        """Move each group's integers by one where that is better."""
        least, s, m = self.errors(), self.s, self.m
        best_s, best_m = s.copy(), m.copy()
        for ds, dm in _NEIGHBOURS:
            self.s, self.m = np.clip(s + ds, 0, 63), np.clip(m + dm, 0, 63)
            errors = self.errors()
            better = errors < least
            np.copyto(least, errors, where=better)
            np.copyto(best_s, self.s, where=better)
            np.copyto(best_m, self.m, where=better)
        self.s, self.m = best_s, best_m


class _SymmetricBlocks:
    """The parameters of super-blocks of 16 groups of 16: w = d * s * q, s in int8 and q from -32 to 31.

    ``x`` is ``[16, 16 * n]``, one group a column.
    """

    def __init__(self, x: Floats) -> None:
        self.x = x
        scales = fit_scale(x, -32, 31).reshape(-1, 16)
        top, bottom = scales.max(axis=1, keepdims=True), scales.min(axis=1, keepdims=True)
        self.d = to_half(np.where(top > -bottom, top, bottom) / np.float32(-128))
        self.s = _round_to(scales, self.d, -128, 127)
        self._refit_step()
        self._try_neighbours()
        self._refit_step()

    @property
    def scale(self) -> Floats:
        return (self.d * self.s).reshape(-1)

    def codes(self) -> Floats:
        return codes_for(self.x, self.scale, -32, 31)

    def errors(self) -> Floats:
        """The squared error of each group ``[n, 16]``."""
        return error_of(self.x, self.codes(), self.scale).reshape(-1, 16)

    def _refit_step(self) -> None:
        """Regression for ``d`` over all 256 weights; kept where it is better."""
        codes, before = self.codes(), self.errors().sum(axis=1, keepdims=True)
        along = (self.s * dot(codes, self.x).reshape(-1, 16)).sum(axis=1, keepdims=True)
        across = (self.s**2 * dot(codes, codes).reshape(-1, 16)).sum(axis=1, keepdims=True)
        old, self.d = self.d, to_half(along * inverse(across))
        np.copyto(self.d, old, where=self.errors().sum(axis=1, keepdims=True) >= before)

    def _try_neighbours(self) -> None:
        least, s = self.errors(), self.s
        best = s.copy()
        for ds in (-1, 1):
            self.s = np.clip(s + ds, -128, 127)
            errors = self.errors()
            better = errors < least
            np.copyto(least, errors, where=better)
            np.copyto(best, self.s, where=better)
        self.s = best


def _pack_scales_and_mins(scales: Bytes, mins: Bytes) -> Bytes:
    """8 scales and 8 mins of 6 bits -> 12 bytes; ``kquants`` says where the bits lie."""
    first = np.concatenate([scales[:, :4], mins[:, :4]], axis=1)
    last = np.concatenate([scales[:, 4:], mins[:, 4:]], axis=1)
    return np.concatenate([first | (last >> 4) << 6, (last[:, :4] & 0x0F) | last[:, 4:] << 4], axis=1)


def _encode_affine(weights: Floats, out: Bytes, high: int) -> Bytes:
    """Write the scales and mins that Q4_K and Q5_K begin with; the codes ``[n, 8, 32]``."""
    blocks = _AffineBlocks(columns(weights, 32), high)
    put_halves(out, 0, blocks.d[:, 0])
    put_halves(out, 2, blocks.dmin[:, 0])
    out[:, 4:16] = _pack_scales_and_mins(blocks.s.astype(np.uint8), blocks.m.astype(np.uint8))
    return blocks.codes().astype(np.uint8).T.reshape(-1, 8, 32)


def _put_nibbles(out: Bytes, codes: Bytes) -> None:
    """Codes ``[n, chunks, 2, k]`` of at least 4 bits: the low nibbles of each pair share bytes of ``out``."""
    out[...] = (codes[:, :, 0] & 0x0F | codes[:, :, 1] << 4).reshape(out.shape)


def encode_q4_k(weights: Floats, out: Bytes) -> None:
    codes = _encode_affine(weights, out, 15)
    _put_nibbles(out[:, 16:], codes.reshape(-1, 4, 2, 32))


def encode_q5_k(weights: Floats, out: Bytes) -> None:
    codes = _encode_affine(weights, out, 31)
    out[:, 16:48] = np.packbits(codes >> 4, axis=1, bitorder="little")[:, 0]
    _put_nibbles(out[:, 48:], codes.reshape(-1, 4, 2, 32))


def encode_q6_k(weights: Floats, out: Bytes) -> None:
    blocks = _SymmetricBlocks(columns(weights, 16))
    codes = (blocks.codes() + 32).astype(np.uint8).T.reshape(-1, 2, 4, 32)
    _put_nibbles(out[:, :128], codes.reshape(-1, 2, 2, 64))
    high = codes >> 4
    high <<= np.array([0, 2, 4, 6], np.uint8)[:, None]
    out[:, 128:192] = np.bitwise_or.reduce(high, axis=2).reshape(-1, 64)
    out[:, 192:208] = blocks.s.astype(np.int8).view(np.uint8)
    put_halves(out, 208, blocks.d[:, 0])
