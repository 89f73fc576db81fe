"""Encoding to the formats with blocks of 32 weights: float32 weights come in, packed blocks are written to
``out``.

``weights`` is float32 ``[n, 32]``, finite and within float16's range, and ``out`` uint8 ``[n, block_bytes]``:
the mirror of ``legacy``. Each block gets the better of the usual parameters (the largest weight at the end of
the range of codes) and those that a search found, measured with the float16 scale that is stored. So no block
is worse than what ggml's reference encoders make of it.
"""

import numpy as np

from nanollama.quant.bits import Bytes, Floats
from nanollama.quant.fit import codes_for, columns, error_of, fit_scale, fit_scale_and_offset, to_half


def put_halves(out: Bytes, offset: int, values: Floats) -> None:
    """Write ``values`` ``[n]`` as float16 at byte ``offset`` of each block."""
    out[:, offset : offset + 2] = values.astype("<f2").view(np.uint8).reshape(-1, 2)


def _put_nibbles(out: Bytes, offset: int, codes: Bytes) -> None:
    """Codes ``[32, n]``: the low four bits of the first 16 and of the last 16 share bytes."""
    low, high = codes[:16] & 0x0F, codes[16:] << 4
    out[:, offset : offset + 16] = (low | high).T


def _put_fifth_bits(out: Bytes, offset: int, codes: Bytes) -> None:
    out[:, offset : offset + 4] = np.packbits(codes >> 4, axis=0, bitorder="little").T


def _symmetric(weights: Floats, half_range: int) -> tuple[Floats, Bytes]:
    """Scales ``[n]`` and codes ``[32, n]`` from 0 to ``2 * half_range - 1`` for w = d * (q - half_range)."""
    x = columns(weights, 32)
    low, high = -half_range, half_range - 1
    top, bottom = x.max(axis=0), x.min(axis=0)
    usual = to_half(np.where(top > -bottom, top, bottom) / np.float32(low))
    codes = codes_for(x, usual, low, high)
    found = to_half(fit_scale(x, low, high))
    found_codes = codes_for(x, found, low, high)
    better = error_of(x, found_codes, found) < error_of(x, codes, usual)
    np.copyto(codes, found_codes, where=better)
    codes += half_range
    return np.where(better, found, usual), codes.astype(np.uint8)


def _affine(weights: Floats, high: int) -> tuple[Floats, Floats, Bytes]:
    """Scales ``[n]``, offsets ``[n]`` and codes ``[32, n]`` from 0 to ``high`` for w = d * q + m."""
    x = columns(weights, 32)
    top, bottom = x.max(axis=0), x.min(axis=0)
    usual, usual_offset = to_half((top - bottom) / np.float32(high)), to_half(bottom)
    codes = codes_for(x, usual, 0, high, usual_offset)
    scale, offset = map(to_half, fit_scale_and_offset(x, high))
    found_codes = codes_for(x, scale, 0, high, offset)
    better = error_of(x, found_codes, scale, offset) < error_of(x, codes, usual, usual_offset)
    np.copyto(codes, found_codes, where=better)
    return np.where(better, scale, usual), np.where(better, offset, usual_offset), codes.astype(np.uint8)


def encode_q4_0(weights: Floats, out: Bytes) -> None:
    scales, codes = _symmetric(weights, 8)
    put_halves(out, 0, scales)
    _put_nibbles(out, 2, codes)


def encode_q4_1(weights: Floats, out: Bytes) -> None:
    scales, offsets, codes = _affine(weights, 15)
    put_halves(out, 0, scales)
    put_halves(out, 2, offsets)
    _put_nibbles(out, 4, codes)


def encode_q5_0(weights: Floats, out: Bytes) -> None:
    scales, codes = _symmetric(weights, 16)
    put_halves(out, 0, scales)
    _put_fifth_bits(out, 2, codes)
    _put_nibbles(out, 6, codes)


def encode_q5_1(weights: Floats, out: Bytes) -> None:
    scales, offsets, codes = _affine(weights, 31)
    put_halves(out, 0, scales)
    put_halves(out, 2, offsets)
    _put_fifth_bits(out, 4, codes)
    _put_nibbles(out, 8, codes)


def encode_q8_0(weights: Floats, out: Bytes) -> None:
    """The largest weight at 127; -128 is not used, because kernels negate codes.

    With 255 codes a search gains nothing. Codes are chosen for the scale as it is stored, which ggml's
    encoder does not do.
    """
    x = columns(weights, 32)
    peak = np.maximum(x.max(axis=0), -x.min(axis=0))
    scale = to_half(peak / np.float32(127))
    codes = codes_for(x, scale, -127, 127)
    # Subnormal float16 scales are coarse: one that was rounded down far clips the largest weights.
    clipped = peak > np.float32(127.5) * scale
    if clipped.any():
        up = np.nextafter(scale.astype(np.float16), np.float16(np.inf)).astype(np.float32)
        other_codes = codes_for(x, up, -127, 127)
        better = clipped & (error_of(x, other_codes, up) < error_of(x, codes, scale))
        np.copyto(codes, other_codes, where=better)
        np.copyto(scale, up, where=better)
    put_halves(out, 0, scale)
    out[:, 2:] = codes.astype(np.int8).view(np.uint8).T
