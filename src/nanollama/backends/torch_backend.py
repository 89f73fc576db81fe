"""The torch backend: weights and a KV cache on one device, and a step that runs the recipe over them.

ModelInput in, float32 logits out. Weights are decoded and converted once, one tensor at a time: peak memory
while loading is the weights in the chosen data type plus the largest single tensor in float32.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

import torch

from nanollama.backends.ops import ModelInput
from nanollama.backends.torch_ops import TorchCache, TorchOps, TorchWeight
from nanollama.errors import BackendError
from nanollama.model.checkpoint import PackedTensor
from nanollama.model.spec import ModelSpec
from nanollama.model.transformer import forward
from nanollama.model.weights import load_weights

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
BLOCK_TOKENS = 32
MAX_ROWS = 4096
MAX_SEQUENCES = 1024


class TorchPacker:
    """Takes parameters in as tensors of one data type on one device; norm weights stay float32."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device = device
        self.dtype = dtype

    def matrix(self, parts: Sequence[PackedTensor], biases: Sequence[PackedTensor]) -> TorchWeight:
        sizes = tuple(part.shape[0] for part in parts)
        data = torch.empty(sum(sizes), parts[0].shape[1], dtype=self.dtype, device=self.device)
        for rows, part in zip(data.split(sizes), parts, strict=True):
            rows.copy_(torch.from_numpy(part.float32()))
        bias = torch.cat([torch.from_numpy(b.float32()) for b in biases]) if biases else None
        return TorchWeight(data, sizes, None if bias is None else bias.to(self.device, self.dtype))

    def vector(self, tensor: PackedTensor) -> TorchWeight:
        return TorchWeight(torch.from_numpy(tensor.float32()).to(self.device, torch.float32))

    def embedding(self, tensor: PackedTensor, *, is_head: bool) -> TorchWeight:
        return self.matrix([tensor], [])


class TorchBackend:
    """One model on one device. Not thread-safe: one step at a time."""

    def __init__(
        self,
        spec: ModelSpec,
        tensors: Mapping[str, PackedTensor],
        *,
        device: str,
        dtype: str,
        cache_tokens: int,
    ) -> None:
        """Load the weights and reserve a cache for ``cache_tokens`` tokens (rounded up to whole blocks).

        Raises:
            FormatError: the tensors do not fill the model exactly.
            BackendError: the device has too little memory.
        """
        self.spec = spec
        self.block_tokens = BLOCK_TOKENS
        self.max_rows, self.max_sequences = MAX_ROWS, MAX_SEQUENCES
        self.num_blocks = -(-cache_tokens // BLOCK_TOKENS)
        self._dtype = DTYPES[dtype]
        try:
            self._weights = load_weights(spec, tensors, TorchPacker(torch.device(device), self._dtype))
            self._cache = TorchCache(
                spec.num_layers, self.num_blocks, BLOCK_TOKENS, spec.attention, self._weights.embedding.data
            )
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise BackendError(
                f"the {device} device has too little memory for this model in {dtype} with a context of "
                f"{cache_tokens} tokens; use a smaller --ctx or a half-precision --dtype"
            ) from error

    @property
    def read_bytes(self) -> int:
        """Bytes of weights that decoding a token reads: the embedding table only where it is the head."""
        w = self._weights
        parameters = [w.norm, w.head]
        for layer in w.layers:
            parameters += [getattr(layer, field.name) for field in fields(layer)]
        return sum(p.data.nbytes for p in parameters if p is not None)

    def step(self, batch: ModelInput) -> "NDArray[np.float32]":
        """Run one step; the logits ``[len(batch.logit_rows), vocab]``."""
        with torch.inference_mode():
            ops = TorchOps(batch, self._cache, self._dtype)
            return forward(ops, self.spec, self._weights).float().cpu().numpy()

    def close(self) -> None:
        """Release the weights and the cache."""
        self.__dict__.pop("_weights", None)
        self.__dict__.pop("_cache", None)


def choose_device(name: str) -> str:
    """The torch device for ``auto``, ``cpu``, ``cuda`` or ``mps``.

    Raises:
        BackendError: the device asked for is not on this machine.
    """
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return next(d for d in ("cuda", "mps", "cpu") if present[d])
    if not present.get(name, False):
        usable = ", ".join(d for d, there in present.items() if there)
        raise BackendError(f"the device {name!r} is not available on this machine; available: {usable}")
    return name
