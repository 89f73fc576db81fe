"""Packed weights to float32: a tensor's format, bytes and shape come in, a new array goes out.

Equal to ggml's reference decoders to the bit. Works through the tensor in pieces that stay in the processor's
cache, so that beside the result only about a megabyte is needed.
"""

from collections.abc import Callable
from math import prod

import numpy as np
from numpy.typing import NDArray

from nanollama.errors import FormatError, UnsupportedError
from nanollama.quant import kquants, legacy
from nanollama.quant.bits import Bytes, Floats
from nanollama.quant.formats import QuantFormat

CHUNK_WEIGHTS = 1 << 18  # 1 MiB of float32; measured from 2^12 to 2^20, the time per weight falls up to here


def _decode_bf16(blocks: Bytes, out: Floats) -> None:
    """bfloat16 is the upper half of a float32."""
    np.left_shift(blocks.view("<u2"), 16, out=out.view(np.uint32), dtype=np.uint32)


def _cast(stored: str) -> Callable[[Bytes, Floats], None]:
    def decode(blocks: Bytes, out: Floats) -> None:
        out[...] = blocks.view(stored)

    return decode


_DECODERS: dict[str, Callable[[Bytes, Floats], None]] = {
    "F32": _cast("<f4"),
    "F16": _cast("<f2"),
    "BF16": _decode_bf16,
    "F64": _cast("<f8"),
    "I8": _cast("<i1"),
    "I16": _cast("<i2"),
    "I32": _cast("<i4"),
    "I64": _cast("<i8"),
    "Q4_0": legacy.decode_q4_0,
    "Q4_1": legacy.decode_q4_1,
    "Q5_0": legacy.decode_q5_0,
    "Q5_1": legacy.decode_q5_1,
    "Q8_0": legacy.decode_q8_0,
    "IQ4_NL": legacy.decode_iq4_nl,
    "MXFP4": legacy.decode_mxfp4,
    "Q2_K": kquants.decode_q2_k,
    "Q3_K": kquants.decode_q3_k,
    "Q4_K": kquants.decode_q4_k,
    "Q5_K": kquants.decode_q5_k,
    "Q6_K": kquants.decode_q6_k,
    "IQ4_XS": kquants.decode_iq4_xs,
}


def dequantize(
    fmt: QuantFormat,
    data: memoryview | NDArray[np.generic],
    shape: tuple[int, ...],
    out: Floats | None = None,
    *,
    name: str = "the tensor",
) -> Floats:
    """The weights of a tensor as float32 of ``shape`` (rows last but one, columns last), always a copy.

    ``data`` is the packed tensor, contiguous. With ``out``, a contiguous float32 array of ``shape``, the
    weights are written there and it is returned. ``name`` is what errors call the tensor: UnsupportedError
    if its format has no decoder, FormatError if ``data`` is not of the size that ``shape`` needs. Infinite
    and NaN scales come out as they are: whether weights make sense is not decided here.
    """
    decode = _DECODERS.get(fmt.name)
    if decode is None:
        raise UnsupportedError(
            f"{name} is of type {fmt.name}, which cannot be decoded; "
            f"use a model in one of {', '.join(_DECODERS)}"
        )
    count = prod(shape)
    if count % fmt.block_size or data.nbytes != fmt.nbytes(count):
        raise FormatError(f"{name} has {data.nbytes} bytes of {fmt.name}, not those of {list(shape)} weights")
    if out is None:
        out = np.empty(shape, np.float32)
    elif out.shape != tuple(shape) or out.dtype != np.float32 or not out.flags.c_contiguous:
        raise ValueError(f"out must be a contiguous float32 array of shape {shape}")
    if count == 0:
        return out
    blocks = np.frombuffer(data, np.uint8).reshape(-1, fmt.block_bytes)
    weights = out.reshape(-1, fmt.block_size)
    step = CHUNK_WEIGHTS // fmt.block_size
    with np.errstate(all="ignore"):
        for start in range(0, len(blocks), step):
            decode(blocks[start : start + step], weights[start : start + step])
    return out
