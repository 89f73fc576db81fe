"""Packed weights to float32 on a torch device: uint8 blocks ``[n, block bytes]`` in, ``[n, block size]`` out.

The same numbers as ``quant/legacy.py`` and ``quant/kquants.py``, whose comments say how the blocks are laid
out, for the formats that quantizing while loading and common files use.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def _half(blocks: Tensor, offset: int) -> Tensor:
    """The float16 number at a byte offset of each block, ``[n, 1]``."""
    return blocks[:, offset : offset + 2].contiguous().view(torch.float16).float()


def _nibbles(packed: Tensor) -> Tensor:
    """``[..., m]`` bytes -> ``[..., 2 * m]`` codes: the low halves, then the high ones."""
    return torch.cat([packed & 0x0F, packed >> 4], dim=-1)


def _bits(packed: Tensor) -> Tensor:
    """``[..., m]`` bytes -> ``[..., 8, m]``: the bits at each place, lowest first."""
    return torch.stack([packed >> place & 1 for place in range(8)], dim=-2)


def _bit_pairs(packed: Tensor) -> Tensor:
    """``[..., m]`` bytes -> ``[..., 4 * m]`` codes of two bits, lowest first."""
    return torch.cat([packed >> place & 3 for place in range(0, 8, 2)], dim=-1)


def _five_bits(low: Tensor, high: Tensor) -> Tensor:
    """Nibbles ``[n, 16]`` and one more bit of each of 32 weights ``[n, 4]`` -> codes ``[n, 32]``."""
    return _nibbles(low) | _bits(high).transpose(-1, -2).flatten(1) << 4


def _q4_0(blocks: Tensor) -> Tensor:
    return (_nibbles(blocks[:, 2:]).float() - 8) * _half(blocks, 0)


def _q4_1(blocks: Tensor) -> Tensor:
    return _nibbles(blocks[:, 4:]).float() * _half(blocks, 0) + _half(blocks, 2)


def _q5_0(blocks: Tensor) -> Tensor:
    return (_five_bits(blocks[:, 6:], blocks[:, 2:6]).float() - 16) * _half(blocks, 0)


def _q5_1(blocks: Tensor) -> Tensor:
    return _five_bits(blocks[:, 8:], blocks[:, 4:8]).float() * _half(blocks, 0) + _half(blocks, 2)


def _q8_0(blocks: Tensor) -> Tensor:
    return blocks[:, 2:].view(torch.int8).float() * _half(blocks, 0)


def _scales_and_mins(packed: Tensor) -> tuple[Tensor, Tensor]:
    """12 bytes -> 8 scales and 8 mins of 6 bits, as float32 ``[n, 8, 1]``."""
    first, high = packed[:, :8] & 0x3F, packed[:, :8] >> 2 & 0x30
    scales = torch.cat([first[:, :4], packed[:, 8:] & 0x0F | high[:, :4]], dim=1)
    mins = torch.cat([first[:, 4:], packed[:, 8:] >> 4 | high[:, 4:]], dim=1)
    return scales.float()[..., None], mins.float()[..., None]


def _with_mins(blocks: Tensor, codes: Tensor) -> Tensor:
    """Codes ``[n, 8, 32]`` of Q4_K or Q5_K, scaled."""
    scales, mins = _scales_and_mins(blocks[:, 4:16])
    scale, low = _half(blocks, 0)[..., None], _half(blocks, 2)[..., None]
    return (codes.float() * (scale * scales) - low * mins).flatten(1)


def _q4_k(blocks: Tensor) -> Tensor:
    return _with_mins(blocks, _nibbles(blocks[:, 16:].unflatten(1, (4, 32))).view(-1, 8, 32))


def _q5_k(blocks: Tensor) -> Tensor:
    codes = _nibbles(blocks[:, 48:].unflatten(1, (4, 32))).view(-1, 8, 32)
    return _with_mins(blocks, codes | _bits(blocks[:, 16:48]) << 4)


def _q6_k(blocks: Tensor) -> Tensor:
    high = _bit_pairs(blocks[:, 128:192].unflatten(1, (2, 32)))
    codes = _nibbles(blocks[:, :128].unflatten(1, (2, 64))) | high << 4
    scales = blocks[:, 192:208].view(torch.int8).float()
    return ((codes.view(-1, 16, 16).float() - 32) * (_half(blocks, 208) * scales)[..., None]).flatten(1)


DECODERS: dict[str, Callable[[Tensor], Tensor]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}
"""The formats that can stay packed on a device."""
