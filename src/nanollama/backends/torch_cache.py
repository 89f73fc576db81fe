"""The torch backend's cache: keys and values of each layer in fixed blocks, on the device of the weights.

What is in it is always finite, also where nothing was stored: attention gathers whole blocks and gives what
must not be seen the weight 0, which only a finite value keeps out.
"""

from copy import copy
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from nanollama.model.spec import AttentionSpec


class TorchCache:
    """``layers`` holds keys and values of each layer, ``[blocks * block tokens, kv heads, head_dim]``.

    One block more than can be used is the scratch block, where padding is stored. On the CPU memory is only
    taken where tokens are stored.
    """

    def __init__(
        self,
        num_layers: int,
        num_blocks: int,
        block_tokens: int,
        attention: AttentionSpec,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.num_blocks, self.block_tokens = num_blocks, block_tokens
        shape = ((num_blocks + 1) * block_tokens, attention.num_kv_heads, attention.head_dim)
        self.layers = [
            (_zeros(shape, device, dtype), _zeros(shape, device, dtype)) for _ in range(num_layers)
        ]

    def one_layer(self, index: int) -> "TorchCache":
        """The cache of one layer, under the index 0."""
        one = copy(self)
        one.layers = [self.layers[index]]
        return one

    def store(self, index: int, slots: Tensor, k: Tensor, v: Tensor) -> None:
        """Put keys and values ``[n, kv heads, head_dim]`` of new tokens where ``slots`` says.

        By index_put_ into the tensor itself and no view of it: that is what torch.compile leaves in place. It
        copies the whole cache for others.
        """
        for cached, new in zip(self.layers[index], (k, v), strict=True):
            cached[slots] = torch.nan_to_num(new)

    def copy_blocks(self, copies: tuple[tuple[int, int], ...]) -> None:
        """Copy whole blocks, source and destination, in all layers. All are read before one is written."""
        sources, destinations = torch.tensor(copies, device=self.layers[0][0].device).unbind(1)
        for cached in chain.from_iterable(self.layers):
            blocks = self._blocks(cached)
            blocks[destinations] = blocks[sources]

    def gather(self, index: int, tables: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Keys and values ``[count, kv heads, tokens, head_dim]`` in the blocks ``[count * blocks]``."""
        keys, values = (
            self._blocks(cached).index_select(0, tables).view(count, -1, *cached.shape[1:]).transpose(1, 2)
            for cached in self.layers[index]
        )
        return keys, values

    def _blocks(self, cached: Tensor) -> Tensor:
        """A layer's keys or values as ``[blocks, block tokens, kv heads, head_dim]``."""
        return cached.view(-1, self.block_tokens, *cached.shape[1:])


def _zeros(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    # numpy leaves it to the system to hand out zeroed pages when they are first used.
    size = int(np.prod(shape)) * dtype.itemsize
    return torch.from_numpy(np.zeros(size, np.uint8)).view(dtype).view(shape)
