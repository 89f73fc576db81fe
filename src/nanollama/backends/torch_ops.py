"""The torch ops: each operation of the recipe, computed at once with eager PyTorch on any device.

Matrices multiply in the backend's data type; norms, rotations, attention scores and the residual stream stay
in float32 (Gemma's residuals overflow float16).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from nanollama.backends.ops import ModelInput, SequenceInput
from nanollama.model.spec import Activation, AttentionSpec, LayerSpec, RopeSpec


@dataclass(frozen=True, slots=True)
class TorchWeight:
    """A packed parameter: one tensor, and for merged matrices the rows of each part and an optional bias."""

    data: Tensor
    sizes: tuple[int, ...] = ()
    bias: Tensor | None = None


class TorchCache:
    """Keys and values of all layers in fixed blocks: ``[layers, blocks * block_tokens, kv heads, head_dim]``.

    Memory is only touched, and so only taken, where tokens are stored.
    """

    def __init__(
        self, num_layers: int, num_blocks: int, block_tokens: int, attention: AttentionSpec, like: Tensor
    ) -> None:
        shape = (num_layers, num_blocks * block_tokens, attention.num_kv_heads, attention.head_dim)
        self.block_tokens = block_tokens
        self.k = torch.empty(shape, dtype=like.dtype, device=like.device)
        self.v = torch.empty(shape, dtype=like.dtype, device=like.device)

    def slots(self, sequence: SequenceInput) -> Tensor:
        """Where each cached and new token of a sequence lies: indices into the token axis of k and v."""
        blocks = torch.tensor(sequence.block_table, device=self.k.device)
        inside = torch.arange(self.block_tokens, device=self.k.device)
        return (blocks[:, None] * self.block_tokens + inside).flatten()[: sequence.n_cached + sequence.n_new]


class TorchOps:
    """The operations of one step over one batch; made for the step and dropped after it."""

    def __init__(self, batch: ModelInput, cache: TorchCache, dtype: torch.dtype) -> None:
        device = cache.k.device
        self.dtype = dtype
        self.cache = cache
        self.sequences = batch.sequences
        self.token_ids = torch.tensor(batch.token_ids, device=device)
        self.rows = torch.tensor(batch.logit_rows, dtype=torch.long, device=device)
        self.slots = [cache.slots(s) for s in batch.sequences]
        pairs = list(zip(batch.sequences, self.slots, strict=True))
        self.new_slots = torch.cat([slots[s.n_cached :] for s, slots in pairs])
        self.positions = torch.cat(
            [torch.arange(s.n_cached, s.n_cached + s.n_new, device=device) for s in batch.sequences]
        ).float()
        self._turns: dict[int, tuple[Tensor, Tensor]] = {}

    def embed(self, table: TorchWeight, scale: float | None) -> Tensor:
        x = table.data[self.token_ids].float()
        return x if scale is None else x * scale

    def rms_norm(self, x: Tensor, weight: TorchWeight, eps: float) -> Tensor:
        groups = x.float().unflatten(-1, (-1, weight.data.shape[0]))
        normed = functional.rms_norm(groups, (weight.data.shape[0],), weight.data, eps)
        return normed.flatten(-2).to(self.dtype)

    def linear(self, x: Tensor, weight: TorchWeight) -> Sequence[Tensor]:
        return tuple(functional.linear(x, weight.data, weight.bias).split(weight.sizes, dim=-1))

    def rope(self, x: Tensor, layer: LayerSpec, head_dim: int) -> Tensor:
        cos, sin = self._turn(layer.rope)
        half = layer.rope.dim // 2
        heads = x.float().unflatten(-1, (-1, head_dim))  # [n, heads, head_dim]
        left, right, rest = heads.split([half, half, head_dim - 2 * half], dim=-1)
        turned = torch.cat([left * cos - right * sin, right * cos + left * sin, rest], dim=-1)
        return turned.flatten(-2).to(self.dtype)

    def _turn(self, rope: RopeSpec) -> tuple[Tensor, Tensor]:
        """Cosine and sine ``[n, 1, dim / 2]`` at the step's positions, once for each distinct rotation."""
        if id(rope) not in self._turns:
            speeds = torch.tensor(rope.frequencies, device=self.positions.device)
            angles = torch.outer(self.positions, speeds)[:, None]
            self._turns[id(rope)] = (angles.cos() * rope.magnitude, angles.sin() * rope.magnitude)
        return self._turns[id(rope)]

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, index: int, layer: LayerSpec, attention: AttentionSpec
    ) -> Tensor:
        heads = (-1, attention.head_dim)
        self.cache.k[index].index_copy_(0, self.new_slots, k.unflatten(-1, heads))
        self.cache.v[index].index_copy_(0, self.new_slots, v.unflatten(-1, heads))
        queries = q.unflatten(-1, heads).split([s.n_new for s in self.sequences])
        outs = [
            self._attend_one(part, sequence, slots, index, layer.window, attention.scale)
            for part, sequence, slots in zip(queries, self.sequences, self.slots, strict=True)
        ]
        return torch.cat(outs).flatten(-2)

    def _attend_one(
        self, q: Tensor, sequence: SequenceInput, slots: Tensor, index: int, window: int | None, scale: float
    ) -> Tensor:
        """Attention of one sequence: q ``[n_new, heads, head_dim]`` over its keys and values in the cache."""
        first = (
            0 if window is None else max(0, sequence.n_cached + 1 - window)
        )  # older keys: out of every window
        slots = slots[first:]
        k = self.cache.k[index].index_select(0, slots)
        v = self.cache.v[index].index_select(0, slots)
        if q.device.type == "cpu":  # the CPU kernels accumulate half types in half
            q, k, v = q.float(), k.float(), v.float()
        mask = None
        if sequence.n_new > 1:
            end = sequence.n_cached + sequence.n_new
            position = torch.arange(first, end, device=q.device)
            distance = position[sequence.n_cached - first :, None] - position
            mask = distance >= 0 if window is None else (distance >= 0) & (distance < window)
        out = functional.scaled_dot_product_attention(
            q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1), mask, scale=scale, enable_gqa=True
        )
        return out.transpose(0, 1).to(self.dtype)

    def gated(self, gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
        gate = gate.float()
        gate = functional.silu(gate) if activation == "silu" else functional.gelu(gate, approximate="tanh")
        return (gate * up.float()).to(self.dtype)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y.float()

    def logit_rows(self, x: Tensor) -> Tensor:
        return x[self.rows]
