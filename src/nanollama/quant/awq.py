"""AWQ matrices in the GEMM layout: the tensors that a layer is stored in come in, codes and groups come out.

``qweight`` int32 ``[in, out / 8]`` and ``qzeros`` int32 ``[groups, out / 8]`` hold 4-bit codes along the
outputs, eight in a word in the order that the kernels of AutoAWQ unpack fastest; ``scales`` is
``[groups, out]``.
"""

import numpy as np

from nanollama.quant.bits import Bytes, Floats
from nanollama.quant.grouped import Groups, Words, fields

BITS = 4
_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where in a word the code of each of eight outputs lies (the inverse of AutoAWQ's 0 2 4 6 1 3 5 7)."""


def awq_groups(qzeros: Words, scales: Floats) -> Groups:
    """The groups of a layer."""
    return Groups(_codes(qzeros).astype(np.int16), np.ascontiguousarray(scales.T))


def awq_codes(qweight: Words) -> Bytes:
    """The codes ``[out, in]``."""
    return _codes(qweight)


def _codes(words: Words) -> Bytes:
    codes = fields(words, BITS).reshape(len(words), -1, len(_PLACES))[..., _PLACES]
    return np.ascontiguousarray(codes.reshape(len(words), -1).T)
