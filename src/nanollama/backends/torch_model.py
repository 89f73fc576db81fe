"""A model on a torch device: a ModelInput in, its logits out, still on the device.

The host sends one array of integers ahead of a step and reads nothing back.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from nanollama.backends.ops import ModelInput
from nanollama.backends.torch_batch import (
    Layout,
    Member,
    StepShape,
    TorchBatch,
    grouped,
    on_device,
    rotation_table,
)
from nanollama.backends.torch_cache import TorchCache
from nanollama.backends.torch_ops import TorchOps
from nanollama.backends.torch_weights import TorchWeight
from nanollama.model.spec import ModelSpec
from nanollama.model.transformer import ModelWeights, forward


class TorchModel:
    """Weights, cache and tables of one model, and a forward pass over them."""

    def __init__(
        self,
        spec: ModelSpec,
        weights: ModelWeights[TorchWeight],
        cache: TorchCache,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.spec = spec
        self.weights = weights
        self.cache = cache
        self.device = device
        self.dtype = dtype
        windows = tuple(dict.fromkeys(layer.window for layer in spec.layers))
        self.layout = Layout(windows, spec.attention, cache.block_tokens, cache.num_blocks)
        ropes = {id(layer.rope): layer.rope for layer in spec.layers if layer.rope is not None}
        n_positions = cache.num_blocks * cache.block_tokens
        self._rotations = {key: rotation_table(rope, n_positions, device) for key, rope in ropes.items()}

    def logits(self, batch: ModelInput) -> Tensor:
        """The logits ``[len(batch.logit_rows), vocab]`` of one step."""
        groups = grouped(batch)
        shape = self.layout.shape_of(groups, len(batch.logit_rows))
        ops = self.ops(shape, self.sent(batch, groups, shape), static_shapes=self.device.type != "cpu")
        return forward(ops, self.spec, self.weights)

    def sent(self, batch: ModelInput, groups: Sequence[Sequence[Member]], shape: StepShape) -> Tensor:
        """The integers of a step, on their way to the device."""
        return on_device(self.layout.integers(batch, groups, shape), self.device)

    def ops(self, shape: StepShape, data: Tensor, *, static_shapes: bool) -> TorchOps:
        """The operations of a step of that shape; ``static_shapes`` as in TorchOps."""
        mask_dtype = torch.float32 if self.device.type == "cpu" else self.dtype
        batch = TorchBatch(shape, data, self._rotations, self.layout, mask_dtype)
        return TorchOps(batch, self.cache, self.dtype, static_shapes=static_shapes)
