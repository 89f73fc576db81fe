"""A mixture of experts in torch: rows and the router's scores in, the weighted sum of the chosen MLPs out.

On a device nothing that is computed is read back to decide what to launch: the few rows of a decode step
gather the matrices they need, and the many of a prompt pass through every expert with a weight that is 0
where it was not chosen. The CPU sorts rows by expert instead, which multiplies no row in vain.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from nanollama.backends.torch_weights import TorchWeight
from nanollama.model.spec import ExpertsSpec

Gated = Callable[[Tensor, Tensor], Tensor]


def choose(scores: Tensor, experts: ExpertsSpec) -> tuple[Tensor, Tensor]:
    """The best experts of each row and their shares, both ``[n, per_token]``, of scores ``[n, count]``.

    Among equals the lowest index comes first, in every backend.
    """
    scores = scores.float()
    best, chosen = (t[:, : experts.per_token] for t in scores.sort(dim=-1, descending=True, stable=True))
    every = best if experts.normalized else scores
    return chosen, (best - every.logsumexp(dim=-1, keepdim=True)).exp()


def mix(
    x: Tensor,
    chosen: Tensor,
    shares: Tensor,
    gate_up: TorchWeight,
    down: TorchWeight,
    gated: Gated,
    *,
    static_shapes: bool,
) -> Tensor:
    """The sum of each row's experts by their shares, float32.

    With ``static_shapes`` no size depends on a value that the device computes.
    """
    if not static_shapes:
        return _sorted(x, chosen, shares, gate_up, down, gated)
    if chosen.numel() <= gate_up.data.shape[0]:
        return _gathered(x, chosen, shares, gate_up, down, gated)
    return _everywhere(x, chosen, shares, gate_up, down, gated)


def _mlp(x: Tensor, gate_up: TorchWeight, down: TorchWeight, gated: Gated) -> Tensor:
    gate, up = gate_up.multiplied(x).split(gate_up.sizes, dim=-1)
    return down.multiplied(gated(gate, up)).float()


def _sorted(
    x: Tensor, chosen: Tensor, shares: Tensor, gate_up: TorchWeight, down: TorchWeight, gated: Gated
) -> Tensor:
    order = chosen.flatten().argsort(stable=True)
    counts = chosen.flatten().bincount(minlength=gate_up.data.shape[0]).tolist()
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for i, places in enumerate(order.split(counts)):
        if counts[i]:
            rows = places // chosen.shape[1]
            one = _mlp(x[rows], gate_up.expert(i), down.expert(i), gated)
            out.index_add_(0, rows, one * shares.flatten()[places, None])
    return out


def _gathered(
    x: Tensor, chosen: Tensor, shares: Tensor, gate_up: TorchWeight, down: TorchWeight, gated: Gated
) -> Tensor:
    picked = chosen.flatten()
    repeated = x.repeat_interleave(chosen.shape[1], dim=0)
    gate, up = _each(repeated, gate_up.expert(picked)).split(gate_up.sizes, dim=-1)
    outs = _each(gated(gate, up), down.expert(picked)).float() * shares.flatten()[:, None]
    return outs.view(*chosen.shape, -1).sum(dim=1)


def _each(x: Tensor, weights: TorchWeight) -> Tensor:
    """Row i times matrix i."""
    y = torch.bmm(weights.dense(x.dtype), x[..., None])[..., 0]
    return y if weights.bias is None else y + weights.bias


def _everywhere(
    x: Tensor, chosen: Tensor, shares: Tensor, gate_up: TorchWeight, down: TorchWeight, gated: Gated
) -> Tensor:
    count = gate_up.data.shape[0]
    weights = torch.zeros(len(x), count, device=x.device).scatter_(1, chosen, shares)
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for i in range(count):
        out = out + _mlp(x, gate_up.expert(i), down.expert(i), gated) * weights[:, i, None]
    return out
