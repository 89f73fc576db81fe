"""Which type each tensor of a model gets: names, shapes and the type asked for come in, formats go out.

The conventions are those of llama.cpp's ``llama_tensor_get_type``, so that files of the same name compare:
matrices get the type, or in a mixture some of them a larger one, the matrix of output logits keeps six bits
or more, vectors stay float32, and rows that are no whole number of blocks get the next larger type that fits.
Plain Python, no numpy.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from nanollama.errors import UsageError
from nanollama.quant.formats import FORMATS, QuantFormat

FILE_TYPES: dict[str, int] = {
    "Q8_0": 7,
    "Q4_0": 2,
    "Q4_1": 3,
    "Q5_0": 8,
    "Q5_1": 9,
    "Q4_K_S": 14,
    "Q4_K_M": 15,
    "Q5_K_S": 16,
    "Q5_K_M": 17,
    "Q6_K": 18,
    "F16": 1,
    "BF16": 32,
    "F32": 0,
}
"""A type that a file can be quantized to -> its number in ``general.file_type`` (``enum llama_ftype``)."""

ALIASES = {"Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
"""Other names, those of llama.cpp's own tool."""

_MOST = {"Q4_K_S": "Q4_K", "Q4_K_M": "Q4_K", "Q5_K_S": "Q5_K", "Q5_K_M": "Q5_K"}
"""A mixture -> the type that most of its weights have."""

QUANTIZATION_VERSION = 2
"""Of the block layouts (``GGML_QNT_VERSION``)."""

AT_LOAD: dict[str, str] = {"q8": "Q8_0", "q4": "Q4_1"}
"""What ``--quantize`` takes -> the type. Q4_1 has a quarter less error than Q4_0 for a ninth more memory."""

_LARGER = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
"""What takes the place of a type whose blocks of 256 do not fit."""

_TOO_FEW_HEAD_BITS = 6.0  # those of Q5_1, its parameters included
_KEPT = ("_norm.weight", "ffn_gate_inp.weight")
"""Ends of the names of matrices whose small errors matter much: norms, and the routers of experts."""

_BLOCK = re.compile(r"blk\.(\d+)\.(.+)")
_EIGHT = 8  # experts, as of Mixtral: its attention is small beside them
_LAYERS_OF_70B = 80
_FIRST_VALUES = 4
_VALUES = ("attn_v.weight", "attn_qkv.weight")


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
    """The format of ``tensor`` in a model of which it gets the type ``wanted``, the name of a format.

    ``is_head`` says that the tensor gives the output logits: the output matrix, or the embedding where there
    is none.
    """
    if len(tensor.shape) == 1 and tensor.fmt.name in ("F16", "BF16", "F64"):
        return FORMATS["F32"]
    if not is_matrix(tensor):
        return tensor.fmt
    fmt = FORMATS[wanted]
    if is_head and fmt.bits_per_weight <= _TOO_FEW_HEAD_BITS:
        fmt = FORMATS["Q6_K"]
    while tensor.shape[-1] % fmt.block_size:
        fmt = FORMATS[_LARGER.get(fmt.name, "F16")]
    return fmt


def file_type(text: str) -> str:
    """The one of ``FILE_TYPES`` that ``text`` means, in any case. Raises ``UsageError``."""
    wanted = ALIASES.get(text.upper(), text.upper())
    if wanted not in FILE_TYPES:
        raise UsageError(f"{text!r:.40} is no type to quantize to; expected one of {', '.join(FILE_TYPES)}")
    return wanted


def file_targets(tensors: Mapping[str, Stored], wanted: str) -> dict[str, QuantFormat]:
    """The format of each tensor of a GGUF file, under GGUF names; ``wanted`` is one of ``FILE_TYPES``."""
    head = "output.weight" if "output.weight" in tensors else "token_embd.weight"
    mixture = _Mixture(tensors, wanted)
    return {
        name: target_format(tensor, mixture.type_of(name), is_head=name == head)
        for name, tensor in tensors.items()
    }


class _Mixture:
    """What a mixture depends on: the numbers of layers and experts, and whether this is a large model."""

    def __init__(self, tensors: Mapping[str, Stored], wanted: str) -> None:
        self.wanted = wanted
        self.base = _MOST.get(wanted, wanted)
        blocks = [match for match in map(_BLOCK.match, tensors) if match is not None]
        self.layers = 1 + max((int(match[1]) for match in blocks), default=0)
        self.with_values = sorted({int(match[1]) for match in blocks if match[2] in _VALUES})
        routers = [t for name, t in tensors.items() if name.endswith("ffn_gate_inp.weight")]
        self.eight_experts = bool(routers) and routers[0].shape[0] == _EIGHT
        sizes = [tensors.get(f"blk.0.attn_{part}.weight") for part in "vq"]
        v, q = (0 if tensor is None else tensor.shape[0] for tensor in sizes)
        self.large_and_grouped = self.layers == _LAYERS_OF_70B and v < q

    def type_of(self, name: str) -> str:
        """The type of a matrix, before its width and its use as head are looked at."""
        match = _BLOCK.match(name)
        if match is None or FORMATS[self.base].block_size == 1:
            return self.base
        layer, part = int(match[1]), match[2]
        medium = self.wanted.endswith("_M")
        if part in _VALUES:
            return self._values(self.with_values.index(layer), medium)
        if part == "attn_k.weight" and self.eight_experts:
            return "Q8_0"
        if part == "attn_output.weight" and self.eight_experts and self.base == "Q4_K":
            return "Q5_K"
        if part.startswith("ffn_down"):
            if medium and _more_bits(layer, self.layers):
                return "Q6_K"
            if self.wanted == "Q4_K_S" and layer < self.layers // 8:
                return "Q5_K"
        return self.base

    def _values(self, index: int, medium: bool) -> str:
        """Of the values, whose errors all heads that share them have; ``index`` counts these matrices."""
        chosen = self.base
        if medium and _more_bits(index, len(self.with_values)):
            chosen = "Q6_K"
        elif self.wanted == "Q4_K_S" and index < _FIRST_VALUES:
            chosen = "Q5_K"
        if self.large_and_grouped and chosen == "Q4_K":
            chosen = "Q5_K"
        return "Q8_0" if self.eight_experts else chosen


def _more_bits(index: int, count: int) -> bool:
    """The first and the last eighth, and every third between them."""
    return index < count // 8 or index >= 7 * count // 8 or (index - count // 8) % 3 == 2


def misfits(tensors: Mapping[str, Stored], wanted: str) -> list[str]:
    """The names of the matrices whose rows are no whole number of blocks of ``wanted``, a type of a file."""
    size = FORMATS[_MOST.get(wanted, wanted)].block_size
    return [name for name, tensor in tensors.items() if is_matrix(tensor) and tensor.shape[-1] % size]


def size_text(n_bytes: float) -> str:
    """``143MB``, ``2.5GB``, ``7GB``: powers of 1000, as ``--quantize`` at load time tells them."""
    if n_bytes < 999.5e6:
        return f"{n_bytes / 1e6:.0f}MB"
    return f"{n_bytes / 1e9:.1f}".removesuffix(".0") + "GB"
