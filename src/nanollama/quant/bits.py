"""Pieces that all block formats are made of: columns of packed blocks come in, halves and small integers go
out.

``blocks`` is uint8 ``[n, block_bytes]``, one packed block a row.
"""

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


def halves(blocks: Bytes, offset: int) -> Floats:
    """The fp16 number at byte ``offset`` of each block, float32 ``[n, 1]``."""
    return blocks[:, offset : offset + 2].view("<f2").astype(np.float32)


def nibbles(packed: Bytes) -> Bytes:
    """Low then high four bits of the last axis: ``[..., k]`` -> ``[..., 2, k]``."""
    codes = np.empty((*packed.shape[:-1], 2, packed.shape[-1]), np.uint8)
    np.bitwise_and(packed, 0x0F, out=codes[..., 0, :])
    np.right_shift(packed, 4, out=codes[..., 1, :])
    return codes


def crumbs(packed: Bytes) -> Bytes:
    """Two bits at a time, lowest first: ``[..., k]`` -> ``[..., 4, k]``."""
    codes = np.empty((*packed.shape[:-1], 4, packed.shape[-1]), np.uint8)
    for pair in range(4):
        np.right_shift(packed, 2 * pair, out=codes[..., pair, :])
    codes &= 0x03
    return codes


def planes(packed: Bytes) -> Bytes:
    """One bit at a time, lowest first: ``[..., k]`` -> ``[..., 8, k]``."""
    codes = np.empty((*packed.shape[:-1], 8, packed.shape[-1]), np.uint8)
    for bit in range(8):
        np.right_shift(packed, bit, out=codes[..., bit, :])
    codes &= 0x01
    return codes
