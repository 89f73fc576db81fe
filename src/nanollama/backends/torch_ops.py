"""The torch ops: each operation of the recipe, computed at once with PyTorch on any device.

Matrices multiply in the backend's data type; norms, rotations, attention scores and the residual stream stay
in float32 (Gemma's residuals overflow float16). No operation waits for the device.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from nanollama.backends import torch_attention, torch_experts
from nanollama.backends.torch_batch import TorchBatch, sees_itself_alone
from nanollama.backends.torch_cache import TorchCache
from nanollama.backends.torch_weights import TorchWeight
from nanollama.model.spec import Activation, AttentionSpec, ExpertsSpec, LayerSpec, RopeSpec

SWIGLU_LIMIT, SWIGLU_SLOPE = 7.0, 1.702
"""Of gpt-oss's activation, which its configuration does not state."""


class TorchOps:
    """The operations of one step over one batch; made for the step and dropped after it.

    ``static_shapes`` asks for operations whose sizes depend on no value that the device computes.
    """

    def __init__(
        self, batch: TorchBatch, cache: TorchCache, dtype: torch.dtype, *, static_shapes: bool
    ) -> None:
        self.batch = batch
        self.cache = cache
        self.dtype = dtype
        self.static_shapes = static_shapes

    def one_layer(self, index: int) -> "TorchOps":
        """The operations for one layer, whose index is then 0: so all layers look alike to a compiler."""
        return TorchOps(self.batch, self.cache.one_layer(index), self.dtype, static_shapes=self.static_shapes)

    def embed(self, table: TorchWeight, scale: float | None) -> Tensor:
        x = table.lookup(self.batch.token_ids).float()
        return x if scale is None else x * scale

    def rms_norm(self, x: Tensor, weight: TorchWeight, eps: float) -> Tensor:
        size = weight.data.shape[0]
        groups = x.float().unflatten(-1, (-1, size))
        return functional.rms_norm(groups, (size,), weight.data, eps).flatten(-2).to(self.dtype)

    def linear(self, x: Tensor, weight: TorchWeight) -> Sequence[Tensor]:
        return tuple(weight.multiplied(x.to(self.dtype)).split(weight.sizes, dim=-1))

    def rope(self, x: Tensor, rope: RopeSpec, head_dim: int) -> Tensor:
        cos, sin = self.batch.rotations[id(rope)]
        half = rope.dim // 2
        heads = x.float().unflatten(-1, (-1, head_dim))  # [n, heads, head_dim]
        left, right, rest = heads.split([half, half, head_dim - 2 * half], dim=-1)
        rotated = torch.cat([left * cos - right * sin, right * cos + left * sin, rest], dim=-1)
        return rotated.flatten(-2).to(self.dtype)

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        sinks: TorchWeight | None,
        index: int,
        layer: LayerSpec,
        attention: AttentionSpec,
    ) -> Tensor:
        q, k, v = (part.unflatten(-1, (-1, attention.head_dim)) for part in (q, k, v))
        self.cache.store(index, self.batch.slots, k, v)
        if q.device.type == "cpu":  # the CPU kernels accumulate half types in half
            q, k, v = q.float(), k.float(), v.float()
        outs = []
        for group in self.batch.groups:
            rows = slice(group.first, group.first + group.shape.rows)
            if sees_itself_alone(group.shape, layer.window, attention):
                outs.append(torch_attention.attend_to_itself(q[rows], k[rows], v[rows], attention))
                continue
            view = group.views[layer.window]
            keys, values = self.cache.gather(index, view.tables, group.shape.count)
            scores_of = None if sinks is None else sinks.data
            outs.append(
                torch_attention.attend_to_cache(
                    q[rows], keys.to(q.dtype), values.to(q.dtype), view, scores_of, attention
                )
            )
        return torch.cat(outs).flatten(-2).to(self.dtype)

    def gated(self, gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
        gate, up = gate.float(), up.float()
        if activation == "clamped_swiglu":
            gate, up = gate.clamp(max=SWIGLU_LIMIT), up.clamp(-SWIGLU_LIMIT, SWIGLU_LIMIT) + 1
            gate = gate * torch.sigmoid(SWIGLU_SLOPE * gate)
        else:
            gate = (
                functional.silu(gate) if activation == "silu" else functional.gelu(gate, approximate="tanh")
            )
        return (gate * up).to(self.dtype)

    def experts(
        self,
        x: Tensor,
        scores: Tensor,
        gate_up: TorchWeight,
        down: TorchWeight,
        activation: Activation,
        experts: ExpertsSpec,
    ) -> Tensor:
        def gated(gate: Tensor, up: Tensor) -> Tensor:
            return self.gated(gate, up, activation)

        chosen, shares = torch_experts.choose(scores, experts)
        x = x.to(self.dtype)
        out = torch_experts.mix(x, chosen, shares, gate_up, down, gated, static_shapes=self.static_shapes)
        return out.to(self.dtype)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y.float()

    def logit_rows(self, x: Tensor) -> Tensor:
        return x[self.batch.rows]

    def softcap(self, x: Tensor, cap: float) -> Tensor:
        return torch_attention.softcap(x.float(), cap)
