"""Which type each tensor of a model gets: names, shapes and the type asked for come in, formats go out.

The conventions are llama.cpp's for a file of one type, so that files of the same name compare: matrices get
the type, the matrix of output logits keeps six bits or more, vectors stay float32, and rows that are no whole
number of blocks get the next larger type that fits. Plain Python, no numpy.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from nanollama.quant.formats import FORMATS, QuantFormat

FILE_TYPES: dict[str, int] = {
    "Q8_0": 7,
    "Q4_0": 2,
    "Q4_1": 3,
    "Q5_0": 8,
    "Q5_1": 9,
    "Q4_K": 14,
    "Q5_K": 16,
    "Q6_K": 18,
    "F16": 1,
    "BF16": 32,
    "F32": 0,
}
"""A type that a file can be quantized to -> its number in ``general.file_type`` (``enum llama_ftype``)."""

QUANTIZATION_VERSION = 2
"""Of the block layouts (``GGML_QNT_VERSION``)."""

AT_LOAD: dict[str, str] = {"q8": "Q8_0", "q4": "Q4_1"}
"""What ``--quantize`` takes -> the type. Q4_1 has a quarter less error than Q4_0 for a ninth more memory."""

_LARGER = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
"""What takes the place of a type whose blocks of 256 do not fit."""

_TOO_FEW_HEAD_BITS = 6.0  # those of Q5_1, its parameters included
_KEPT = ("_norm.weight", "ffn_gate_inp.weight")
"""Ends of the names of matrices whose small errors matter much: norms, and the routers of experts."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor as it is stored: ``shape`` is (rows, columns) or (size,)."""

    name: str
    shape: tuple[int, ...]
    fmt: QuantFormat


def is_matrix(tensor: Stored) -> bool:
    """Whether a tensor is one of those that quantizing is about."""
    return len(tensor.shape) > 1 and tensor.name.endswith(".weight") and not tensor.name.endswith(_KEPT)


def target_format(tensor: Stored, wanted: str, *, is_head: bool) -> QuantFormat:
    """The format of ``tensor`` in a model quantized to the type ``wanted``.

    ``is_head`` says that the tensor gives the output logits: the output matrix, or the embedding where there
    is none.
    """
    if len(tensor.shape) == 1 and tensor.fmt.name in ("F16", "BF16"):
        return FORMATS["F32"]
    if not is_matrix(tensor):
        return tensor.fmt
    fmt = FORMATS[wanted]
    if is_head and fmt.bits_per_weight <= _TOO_FEW_HEAD_BITS:
        fmt = FORMATS["Q6_K"]
    while tensor.shape[-1] % fmt.block_size:
        fmt = FORMATS[_LARGER.get(fmt.name, "F16")]
    return fmt


def file_targets(tensors: Mapping[str, Stored], wanted: str) -> dict[str, QuantFormat]:
    """The format of each tensor of a GGUF file, under GGUF names."""
    head = "output.weight" if "output.weight" in tensors else "token_embd.weight"
    return {name: target_format(tensor, wanted, is_head=name == head) for name, tensor in tensors.items()}


def misfits(tensors: Mapping[str, Stored], wanted: str) -> list[str]:
    """The names of the matrices whose rows are no whole number of blocks of ``wanted``."""
    size = FORMATS[wanted].block_size
    return [name for name, tensor in tensors.items() if is_matrix(tensor) and tensor.shape[-1] % size]


def size_text(n_bytes: float) -> str:
    """``143MB``, ``2.5GB``, ``7GB``: powers of 1000."""
    if n_bytes < 999.5e6:
        return f"{n_bytes / 1e6:.0f}MB"
    return f"{n_bytes / 1e9:.1f}".removesuffix(".0") + "GB"
