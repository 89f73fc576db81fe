"""GPTQ matrices: the four tensors that a layer is stored in come in, codes and groups come out.

``qweight`` int32 ``[in * bits / 32, out]`` holds codes along the inputs, ``qzeros`` int32
``[groups, out * bits / 32]`` along the outputs, both lowest bits first; ``scales`` is ``[groups, out]`` and
``g_idx`` ``[in]`` the group of each input. The first version of the format stores each zero less one
(AutoGPTQ, ``gptq``), the second as it is (GPTQModel, ``gptq_v2``).
"""

import numpy as np

from nanollama.quant.bits import Bytes, Floats
from nanollama.quant.grouped import Groups, Order, Words, fields


def gptq_groups(qzeros: Words, scales: Floats, order: Order | None, *, bits: int, version: int) -> Groups:
    """The groups of a layer; ``order`` is its ``g_idx``."""
    zeros = fields(qzeros, bits)[:, : scales.shape[1]].astype(np.int16)
    if version == 1:
        zeros = (zeros + 1) & (1 << bits) - 1  # AutoGPTQ takes the sum's lower bits: 0 is stored as all ones
    return Groups(np.ascontiguousarray(zeros.T), np.ascontiguousarray(scales.T), order)


def gptq_codes(qweight: Words, bits: int) -> Bytes:
    """The codes ``[out, in]``."""
    return fields(qweight.T, bits)
