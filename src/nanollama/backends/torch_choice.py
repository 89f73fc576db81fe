"""Choosing on the device: edits of logits, and the highest of them, without moving the vocabulary."""

import numpy as np
import torch

from nanollama.sampling.edits import Edits


def edited(logits: torch.Tensor, edits: Edits) -> torch.Tensor:
    """A copy of ``logits`` ``[rows, vocab]`` in float32 with ``edits`` made."""
    # One copy to the device for all of them, as words of four bytes: some devices have no float64.
    arrays = (edits.rows().astype(np.int32), edits.token_ids, edits.times, edits.bias, edits.factors)
    words = torch.from_numpy(np.concatenate([np.frombuffer(array, np.int32) for array in arrays]))
    sizes = [len(array) for array in arrays]
    row, token_id, times, bias, factors = torch.split(words.to(logits.device), sizes)
    row, token_id = row.long(), token_id.long()
    times, bias = times.view(torch.float32), bias.view(torch.float32)
    repeat, frequency, presence = factors.view(torch.float32).view(-1, 3)[row].T
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
