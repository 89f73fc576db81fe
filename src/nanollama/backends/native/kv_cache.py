"""The cache of keys and values: a model's sizes in, the memory of all layers out, as the kernels take it.

Numbers are float16, or float32 for a model whose matrices all are. One piece of memory holds
``[block][layer][keys, values]``: it is taken as blocks come into use, and copying a block copies what all
layers have of its tokens. Keys and values of a layer lie as ``kernels.h`` says.
"""

import ctypes
from collections.abc import Iterable

from nanollama.backends.native.library import Cache
from nanollama.backends.native.memory import Arena
from nanollama.model.checkpoint import PackedTensor
from nanollama.model.spec import ModelSpec

BLOCK_TOKENS = 32
LANES = 16
"""Heads in the cache are a multiple of that many dimensions."""


def wants_float32(tensors: Iterable[PackedTensor]) -> bool:
    """Whether every matrix of the model is float32, so that keys and values in float16 would be what is least
    exact in it."""
    return all(tensor.fmt.name == "F32" for tensor in tensors if len(tensor.shape) > 1)


class PagedCache:
    """``layers`` is what the kernels take of each layer; ``head_dim`` is padded to whole panels of lanes."""

    def __init__(self, arena: Arena, spec: ModelSpec, num_blocks: int, *, is_float32: bool) -> None:
        """Reserve ``num_blocks`` blocks of BLOCK_TOKENS tokens.

        Raises:
            BackendError: the system has not that much memory.
        """
        a = spec.attention
        self.head_dim = -(-a.head_dim // LANES) * LANES
        width = 4 if is_float32 else 2
        size = BLOCK_TOKENS * a.num_kv_heads * self.head_dim  # numbers in the keys of one block and layer
        block_stride = 2 * size * spec.num_layers
        self._block_bytes = width * block_stride
        self._start = arena.take(num_blocks * self._block_bytes)
        self.layers = [
            Cache(
                keys=self._start + width * 2 * i * size,
                values=self._start + width * (2 * i + 1) * size,
                is_float32=is_float32,
                block_size=BLOCK_TOKENS,
                kv_heads=a.num_kv_heads,
                head_dim=self.head_dim,
                block_stride=block_stride,
            )
            for i in range(spec.num_layers)
        ]

    @property
    def token_bytes(self) -> int:
        """Bytes that a token takes: its keys and values in all layers."""
        return self._block_bytes // BLOCK_TOKENS

    def copy_blocks(self, copies: Iterable[tuple[int, int]]) -> None:
        """Copy whole blocks, source and destination, in all layers."""
        start, n_bytes = self._start, self._block_bytes
        for source, destination in copies:
            ctypes.memmove(start + destination * n_bytes, start + source * n_bytes, n_bytes)
