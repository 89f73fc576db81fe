"""Decoding of the formats with blocks of 32 weights: packed blocks come in, float32 weights are written to
``out``.

``blocks`` is uint8 ``[n, block_bytes]`` and ``out`` float32 ``[n, 32]``. The layouts are the block structs of
ggml (``ggml-common.h``), the order of the float operations is that of its reference decoders, so that results
are equal to the bit.
"""

import numpy as np

from nanollama.quant.bits import Bytes, Floats, halves, nibbles

IQ4_VALUES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
"""What the 16 codes of IQ4_NL and IQ4_XS stand for, before the scale."""

MXFP4_VALUES = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)
"""The 16 E2M1 numbers, doubled; the scale is halved in return (OCP Microscaling Formats specification
1.0)."""


def _mxfp4_scales() -> Floats:
    """Half of 2 to the power (byte - 127) for each of the 256 bytes; the smallest two are subnormal."""
    bits = np.maximum(np.arange(256), 1).astype(np.uint32) - 1 << 23
    bits[:2] = 0x00200000, 0x00400000
    return bits.view(np.float32)


_MXFP4_SCALES = _mxfp4_scales()


def decode_q4_0(blocks: Bytes, out: Floats) -> None:
    """fp16 scale, 16 bytes of nibbles: w = d * (q - 8)."""
    codes = nibbles(blocks[:, 2:]).reshape(out.shape)
    codes -= 8
    out[...] = codes.view(np.int8)
    out *= halves(blocks, 0)


def decode_q4_1(blocks: Bytes, out: Floats) -> None:
    """fp16 scale, fp16 min, 16 bytes of nibbles: w = d * q + m."""
    out[...] = nibbles(blocks[:, 4:]).reshape(out.shape)
    out *= halves(blocks, 0)
    out += halves(blocks, 2)


def _five_bits(low: Bytes, high: Bytes) -> Bytes:
    """Nibbles ``[n, 16]`` and one more bit of each of the 32 weights ``[n, 4]`` -> codes ``[n, 32]``."""
    codes = nibbles(low).reshape(-1, 32)
    fifth = np.unpackbits(high, axis=1, bitorder="little")
    fifth <<= 4
    codes |= fifth
    return codes


def decode_q5_0(blocks: Bytes, out: Floats) -> None:
    """fp16 scale, 32 high bits, 16 bytes of nibbles: w = d * (q - 16)."""
    codes = _five_bits(blocks[:, 6:], blocks[:, 2:6])
    codes -= 16
    out[...] = codes.view(np.int8)
    out *= halves(blocks, 0)


def decode_q5_1(blocks: Bytes, out: Floats) -> None:
    """fp16 scale, fp16 min, 32 high bits, 16 bytes of nibbles: w = d * q + m."""
    out[...] = _five_bits(blocks[:, 8:], blocks[:, 4:8])
    out *= halves(blocks, 0)
    out += halves(blocks, 2)


def decode_q8_0(blocks: Bytes, out: Floats) -> None:
    """fp16 scale, 32 signed bytes: w = d * q."""
    out[...] = blocks[:, 2:].view(np.int8)
    out *= halves(blocks, 0)


def decode_iq4_nl(blocks: Bytes, out: Floats) -> None:
    """fp16 scale, 16 bytes of nibbles that choose one of 16 values."""
    np.take(IQ4_VALUES, nibbles(blocks[:, 2:]).reshape(out.shape), out=out, mode="clip")
    out *= halves(blocks, 0)


def decode_mxfp4(blocks: Bytes, out: Floats) -> None:
    """One byte of exponent, 16 bytes of nibbles that choose one of the 16 E2M1 values."""
    np.take(MXFP4_VALUES, nibbles(blocks[:, 1:]).reshape(out.shape), out=out, mode="clip")
    out *= _MXFP4_SCALES[blocks[:, :1]]
