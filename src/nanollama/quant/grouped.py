"""Matrices of small integers whose groups share a scale: codes, zeros and scales in, GGUF blocks out.

A weight is ``scale * (code - zero)``. Where blocks of the GGUF family hold exactly that number they are used,
else float32 does: a scale of at most 24 bits less those of the code loses nothing there.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nanollama.quant.bits import Bytes, Floats
from nanollama.quant.formats import FORMATS, QuantFormat

Words = NDArray[np.uint32]
Shorts = NDArray[np.int16]
Order = NDArray[np.int32]

BLOCK = 32


@dataclass(frozen=True, slots=True)
class Groups:
    """What weights share: ``zeros`` and ``scales`` are ``[rows, groups]``.

    ``of_column`` is the group of each column, ``None`` where all are equally long and lie one after another.
    """

    zeros: Shorts
    scales: Floats
    of_column: Order | None = None


def exact_format(bits: int, columns: int, groups: Groups) -> QuantFormat:
    """The smallest format that holds every weight of such a matrix, whatever its codes, to the bit."""
    size = columns // groups.scales.shape[1]
    if groups.of_column is not None or size % BLOCK or not _are_halves(groups.scales):
        return FORMATS["F32"]
    middle = 1 << (bits - 1)
    if (groups.zeros == middle).all():
        return FORMATS["Q4_0" if bits == 4 else "Q8_0"]
    # Zeros from 0 to 16 put the difference to a code of 4 bits between -16 and 15: five bits.
    return FORMATS["Q5_0" if bits == 4 else "F32"]


def packed(codes: Bytes, groups: Groups, fmt: QuantFormat) -> Bytes:
    """The matrix of ``codes``, ``[rows, columns]``, in a format that :func:`exact_format` gave."""
    rows, columns = codes.shape
    if fmt.name == "F32":
        return _floats(codes, groups).view(np.uint8).reshape(-1)
    per_group = columns // groups.scales.shape[1] // BLOCK
    scales = np.repeat(groups.scales.astype("<f2"), per_group, axis=1)
    out = np.empty((rows, columns // BLOCK, fmt.block_bytes), np.uint8)
    out[..., :2] = scales[..., None].view(np.uint8)
    blocks: Bytes = codes.reshape(rows, -1, BLOCK)
    if fmt.name == "Q4_0":
        out[..., 2:] = _nibble_pairs(blocks)
        return out.reshape(-1)
    zeros = np.repeat(groups.zeros, per_group, axis=1)[..., None]
    differences = blocks.astype(np.int16)
    differences -= zeros
    if fmt.name == "Q8_0":
        out[..., 2:] = differences.astype(np.int8).view(np.uint8)
        return out.reshape(-1)
    assert fmt.name == "Q5_0", fmt.name
    five: Bytes = (differences + 16).astype(np.uint8)
    out[..., 2:6] = np.packbits(five >> 4, axis=-1, bitorder="little")
    out[..., 6:] = _nibble_pairs(five & np.uint8(15))
    return out.reshape(-1)


def fields(words: Words, bits: int) -> Bytes:
    """The codes in 32-bit words, lowest bits first: ``[..., n]`` -> ``[..., 32 / bits * n]``."""
    data = np.ascontiguousarray(words).astype("<u4", copy=False).view(np.uint8)
    if bits == 8:
        return data
    assert bits == 4, bits
    codes = np.empty((*data.shape[:-1], 2 * data.shape[-1]), np.uint8)
    np.bitwise_and(data, 15, out=codes[..., 0::2])
    np.right_shift(data, 4, out=codes[..., 1::2])
    return codes


def _nibble_pairs(codes: Bytes) -> Bytes:
    """A block's number shares its byte with the one 16 places on."""
    pairs: Bytes = codes[..., : BLOCK // 2] | codes[..., BLOCK // 2 :] << np.uint8(4)
    return pairs


def _are_halves(scales: Floats) -> bool:
    with np.errstate(over="ignore", under="ignore"):
        return bool((scales.astype(np.float16) == scales).all())


def _floats(codes: Bytes, groups: Groups) -> Floats:
    zeros, scales = groups.zeros, groups.scales
    out = codes.astype(np.float32)
    if groups.of_column is not None:
        out -= zeros[:, groups.of_column]
        out *= scales[:, groups.of_column]
        return out
    grouped = out.reshape(*scales.shape, -1)
    grouped -= zeros[..., None]
    grouped *= scales[..., None]
    return out
