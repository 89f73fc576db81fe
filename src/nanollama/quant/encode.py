"""Float32 weights to packed blocks: a format and weights come in, the bytes that decode nearest go out.

The mirror of ``decode``. Block formats are searched for the smallest squared error (``fit``). Works through
the weights in chunks that stay in the processor's cache, so that beside the result only a few megabytes are
needed.
"""

from collections.abc import Callable

import numpy as np

from nanollama.errors import FormatError, UsageError
from nanollama.quant import encode_kquants, encode_legacy
from nanollama.quant.bits import Bytes, Floats
from nanollama.quant.fit import HALF_MAX
from nanollama.quant.formats import QuantFormat

CHUNK_WEIGHTS = 1 << 16
"""256 KiB of float32 and four temporaries of that size."""

_LARGEST = {"F32": float(np.finfo(np.float32).max), "BF16": 2.0**127 * (2 - 2**-7)}
"""The largest weight of formats that hold more than float16, in which all others keep weights or scales."""


def _encode_f32(weights: Floats, out: Bytes) -> None:
    out[...] = weights.astype("<f4", copy=False).view(np.uint8)


def _encode_f16(weights: Floats, out: Bytes) -> None:
    out[...] = weights.astype("<f2").view(np.uint8)


def _encode_bf16(weights: Floats, out: Bytes) -> None:
    """The upper half of a float32, rounded to nearest, ties to even."""
    bits = weights.view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    out[...] = rounded.astype("<u2").view(np.uint8)


_ENCODERS: dict[str, Callable[[Floats, Bytes], None]] = {
    "F32": _encode_f32,
    "F16": _encode_f16,
    "BF16": _encode_bf16,
    "Q4_0": encode_legacy.encode_q4_0,
    "Q4_1": encode_legacy.encode_q4_1,
    "Q5_0": encode_legacy.encode_q5_0,
    "Q5_1": encode_legacy.encode_q5_1,
    "Q8_0": encode_legacy.encode_q8_0,
    "Q4_K": encode_kquants.encode_q4_k,
    "Q5_K": encode_kquants.encode_q5_k,
    "Q6_K": encode_kquants.encode_q6_k,
}

ENCODABLE: tuple[str, ...] = tuple(_ENCODERS)
"""The names of the formats that ``quantize`` writes."""


def quantize(fmt: QuantFormat, weights: Floats, *, name: str = "the tensor") -> Bytes:
    """The weights as packed bytes ``[fmt.nbytes(weights.size)]``; rows are a multiple of the block size.

    The same weights give the same bytes whatever they are a part of. ``name`` is what errors call the tensor:
    UsageError if the format is not one of ``ENCODABLE``, FormatError if a weight is infinite, not a number or
    larger than the format can hold.
    """
    encode = _ENCODERS.get(fmt.name)
    if encode is None:
        raise UsageError(f"{fmt.name} is not written; expected one of {', '.join(ENCODABLE)}")
    if weights.shape[-1] % fmt.block_size:
        raise ValueError(f"rows of {weights.shape[-1]} weights are not whole {fmt.name} blocks")
    blocks = np.ascontiguousarray(weights, np.float32).reshape(-1, fmt.block_size)
    out = np.empty((len(blocks), fmt.block_bytes), np.uint8)
    step = CHUNK_WEIGHTS // fmt.block_size
    for start in range(0, len(blocks), step):
        chunk = blocks[start : start + step]
        _check_range(chunk, fmt, name)
        encode(chunk, out[start : start + step])
    return out.reshape(-1)


def _check_range(weights: Floats, fmt: QuantFormat, name: str) -> None:
    largest = float(max(weights.max(), -weights.min()))
    limit = _LARGEST.get(fmt.name, HALF_MAX)
    if largest <= limit:  # false for NaN
        return
    if not np.isfinite(weights).all():
        raise FormatError(
            f"{name} holds weights that are infinite or not a number; the file is damaged or the model is "
            "broken: fetch it again"
        )
    raise FormatError(
        f"{name} holds a weight of magnitude {largest:.4g}, but {fmt.name} holds none above {limit:.4g}; "
        "choose the type F32 or BF16"
    )
