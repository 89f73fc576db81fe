"""Choosing on the device: edits of logits, and the highest of them, without moving the vocabulary."""

import numpy as np
import torch

from nanollama.sampling.edits import Edits


def edited(logits: torch.Tensor, edits: Edits) -> torch.Tensor:
    """A copy of ``logits`` ``[rows, vocab]`` in float32 with ``edits`` made."""
    # One copy to the device for all of them: whole numbers of float64 are exact.
    fields = np.stack([edits.rows(), edits.token_ids, edits.times, edits.bias]).astype(np.float64)
    packed = torch.from_numpy(np.concatenate([fields.ravel(), edits.factors])).to(logits.device)
    n = len(edits)
    row, token_id = packed[: 2 * n].view(2, n).long()
    times, bias = packed[2 * n : 4 * n].view(2, n).float()
    repeat, frequency, presence = packed[4 * n :].view(-1, 3).float()[row].T
    biased = logits[row, token_id] + bias
    repeated = torch.where(biased > 0, biased / repeat, biased * repeat)
    # Not in place: the logits may be a buffer of a captured step.
    return logits.index_put(
        (row, token_id), torch.where(times > 0, repeated - times * frequency - presence, biased)
    )


def highest(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and values ``[rows, k]`` of the highest logits, highest first, equal ones by id; NaN is highest.

    torch's own order of equal values is not defined, and logits in bfloat16 are often equal. So whole numbers
    are compared: the float's bits, which sort like it once those of negative numbers are turned round, above
    the id.
    """
    vocab = logits.shape[-1]
    ids = torch.arange(vocab, device=logits.device)
    positive_zero = torch.where(logits.isnan(), torch.inf, logits) + 0.0
    bits = positive_zero.view(torch.int32)
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long() + logits.isnan()
    keys = (ordered << 32) + (vocab - 1 - ids)
    best = keys.max(dim=-1, keepdim=True).values if k == 1 else keys.topk(k).values
    best_ids = vocab - 1 - (best & 0xFFFFFFFF)
    return best_ids, logits.gather(-1, best_ids)
