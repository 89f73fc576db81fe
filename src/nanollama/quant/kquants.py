"""Decoding of the formats with super-blocks of 256 weights: packed blocks come in, float32 weights are
written to ``out``.

``blocks`` is uint8 ``[n, block_bytes]`` and ``out`` float32 ``[n, 256]``. A super-block holds 8 groups of 32
or 16 groups of 16 weights whose small integer scales are multiplied by one fp16 scale. The layouts are the
block structs of ggml (``ggml-common.h``), the order of the float operations is that of its reference
decoders, so that results are equal to the bit.
"""

import numpy as np

from nanollama.quant.bits import Bytes, Floats, crumbs, halves, nibbles, planes
from nanollama.quant.legacy import IQ4_VALUES


def _grouped(out: Floats, groups: int) -> Floats:
    return out.reshape(len(out), groups, 256 // groups)


def _scales_and_mins(packed: Bytes) -> tuple[Bytes, Bytes]:
    """12 bytes -> 8 scales and 8 mins of 6 bits (Q4_K, Q5_K).

    Bytes 0 to 3 and 4 to 7 hold scales and mins 0 to 3 in their low six bits; the last four of each have
    their low nibbles in bytes 8 to 11 and their high two bits on top of the first eight bytes.
    """
    first = packed[:, :8] & 0x3F
    low = nibbles(packed[:, 8:]).reshape(-1, 8)
    last = low | (packed[:, :8] >> 2 & 0x30)
    scales = np.concatenate([first[:, :4], last[:, :4]], axis=1)
    mins = np.concatenate([first[:, 4:], last[:, 4:]], axis=1)
    return scales, mins


def decode_q2_k(blocks: Bytes, out: Floats) -> None:
    """16 bytes of 4-bit scales and mins, 64 bytes of crumbs, fp16 scale and min: w = d * s * q - dmin * m."""
    weights = _grouped(out, 16)
    scales = halves(blocks, 80) * (blocks[:, :16] & 0x0F)
    mins = halves(blocks, 82) * (blocks[:, :16] >> 4)
    weights[...] = crumbs(blocks[:, 16:80].reshape(-1, 2, 32)).reshape(weights.shape)
    weights *= scales[:, :, None]
    weights -= mins[:, :, None]


def decode_q3_k(blocks: Bytes, out: Floats) -> None:
    """32 bytes of high bits, 64 of crumbs, 12 of 6-bit scales, fp16 scale: w = d * (s - 32) * (q - 4 where
    the bit is 0)."""
    weights = _grouped(out, 16)
    scales = nibbles(blocks[:, 96:104]).reshape(-1, 16)
    scales |= crumbs(blocks[:, 104:108]).reshape(-1, 16) << 4
    scales -= 32
    codes = planes(blocks[:, :32])
    codes <<= 2
    codes |= crumbs(blocks[:, 32:96].reshape(-1, 2, 32)).reshape(codes.shape)
    codes -= 4
    weights[...] = codes.view(np.int8).reshape(weights.shape)
    weights *= (halves(blocks, 108) * scales.view(np.int8))[:, :, None]


def decode_q4_k(blocks: Bytes, out: Floats) -> None:
    """fp16 scale and min, 12 bytes of 6-bit scales and mins, 128 bytes of nibbles: w = d * s * q - dmin *
    m."""
    weights = _grouped(out, 8)
    scales, mins = _scales_and_mins(blocks[:, 4:16])
    weights[...] = nibbles(blocks[:, 16:].reshape(-1, 4, 32)).reshape(weights.shape)
    weights *= (halves(blocks, 0) * scales)[:, :, None]
    weights -= (halves(blocks, 2) * mins)[:, :, None]


def decode_q5_k(blocks: Bytes, out: Floats) -> None:
    """As Q4_K, with 32 bytes of high bits in front of the nibbles."""
    weights = _grouped(out, 8)
    scales, mins = _scales_and_mins(blocks[:, 4:16])
    codes = planes(blocks[:, 16:48])
    codes <<= 4
    codes |= nibbles(blocks[:, 48:].reshape(-1, 4, 32)).reshape(codes.shape)
    weights[...] = codes
    weights *= (halves(blocks, 0) * scales)[:, :, None]
    weights -= (halves(blocks, 2) * mins)[:, :, None]


def decode_q6_k(blocks: Bytes, out: Floats) -> None:
    """128 bytes of nibbles, 64 of crumbs, 16 signed scales, fp16 scale: w = d * s * (q - 32)."""
    weights = _grouped(out, 16)
    codes = crumbs(blocks[:, 128:192].reshape(-1, 2, 32))
    codes <<= 4
    codes |= nibbles(blocks[:, :128].reshape(-1, 2, 64)).reshape(codes.shape)
    codes -= 32
    weights[...] = codes.view(np.int8).reshape(weights.shape)
    weights *= (halves(blocks, 208) * blocks[:, 192:208].view(np.int8))[:, :, None]


def decode_iq4_xs(blocks: Bytes, out: Floats) -> None:
    """fp16 scale, 8 scales of 6 bits (2 bytes of high, 4 of low bits), 128 bytes of nibbles: w = d * (s - 32)
    * value[q]."""
    weights = _grouped(out, 8)
    high = blocks[:, 2:4].view("<u2") >> np.arange(0, 16, 2, dtype=np.uint16)
    low = np.swapaxes(nibbles(blocks[:, 4:8]), 1, 2).reshape(-1, 8)
    scales = (low | (high.astype(np.uint8) & 0x03) << 4) - np.uint8(32)
    codes = nibbles(blocks[:, 8:].reshape(-1, 8, 16)).reshape(weights.shape)
    np.take(IQ4_VALUES, codes, out=weights, mode="clip")
    weights *= (halves(blocks, 0) * scales.view(np.int8))[:, :, None]
