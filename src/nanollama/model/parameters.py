"""One form for all checkpoints: tensors under the names a file gives them in, parameters that weights.py asks
for out.

Renamed, cut apart where a file keeps several in one, and each expert by itself. Nothing is read: a part is a
view of the tensor it was cut from, and one that has to be computed is when it is read.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from nanollama.errors import FormatError
from nanollama.model.spec import ModelSpec
from nanollama.quant.formats import FORMATS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from nanollama.model.checkpoint import PackedTensor

    Part = tuple[str, PackedTensor]

_RENAMES = (
    (re.compile(r"\.block_sparse_moe\."), ".mlp."),
    (re.compile(r"\.mlp\.router\."), ".mlp.gate."),
    (re.compile(r"(\.experts\.\d+)\.w1\."), r"\1.gate_proj."),
    (re.compile(r"(\.experts\.\d+)\.w2\."), r"\1.down_proj."),
    (re.compile(r"(\.experts\.\d+)\.w3\."), r"\1.up_proj."),
)
"""Mixtral's and gpt-oss's names for what Qwen 3 calls otherwise."""

_NORM = re.compile(r".*norm\.weight")
_STACKED = re.compile(r"(.*\.mlp\.experts)\.(gate_up|gate|up|down)_proj(?:[._](weight|bias))?")
_COMPUTED = re.compile(r".*\.rotary_emb\.inv_freq")
"""Frequencies that old checkpoints carry along; the ModelSpec has them."""


def parameters(
    spec: ModelSpec,
    tensors: "Mapping[str, PackedTensor]",
    *,
    norm_offset: float = 0.0,
    experts_interleaved: bool = False,
) -> "dict[str, PackedTensor]":
    """The parameters of ``spec`` that ``tensors`` hold; what is not recognised keeps its name.

    ``norm_offset`` is added to the weights of norms. ``experts_interleaved`` says that rows of gate and up
    alternate in the matrix that holds both, and that experts' matrices lie ``[in, out]`` unless their name
    ends in ``weight``.

    Raises:
        FormatError: a tensor that holds several parameters has another size than they have together.
    """
    found: dict[str, PackedTensor] = {}
    for stored, tensor in tensors.items():
        if _COMPUTED.fullmatch(stored) or (spec.tied_head and stored == "lm_head.weight"):
            continue
        name = stored
        for pattern, replacement in _RENAMES:
            name = pattern.sub(replacement, name)
        for part_name, part in _parts(spec, name, tensor, experts_interleaved):
            if norm_offset and _NORM.fullmatch(part_name):
                part = _shifted(part, norm_offset)
            found[part_name] = replace(part, name=part_name)
    return found


def _parts(spec: ModelSpec, name: str, tensor: "PackedTensor", interleaved: bool) -> "Iterator[Part]":
    """The parameters that one tensor holds."""
    a = spec.attention
    if (match := _STACKED.fullmatch(name)) and spec.mlp.experts is not None:
        yield from _experts(spec, match, tensor, interleaved)
    elif ".self_attn.qkv_proj." in name:
        sizes = {"q_proj": a.q_size, "k_proj": a.kv_size, "v_proj": a.kv_size}
        yield from _rows(name, tensor, "qkv_proj", sizes)
    else:
        yield from _gate_and_up(spec, name, tensor, interleaved)


def _rows(name: str, tensor: "PackedTensor", fused: str, sizes: Mapping[str, int]) -> "Iterator[Part]":
    if tensor.shape[0] != sum(sizes.values()):
        raise FormatError(
            f"the tensor for {name} has {tensor.shape[0]} rows; expected {sum(sizes.values())} "
            "from the model's settings"
        )
    start = 0
    for part, size in sizes.items():
        yield name.replace(fused, part), tensor.rows(start, start + size)
        start += size


def _experts(
    spec: ModelSpec, match: re.Match[str], tensor: "PackedTensor", interleaved: bool
) -> "Iterator[Part]":
    """Each expert's share of a tensor that holds them all, ``[experts, out, in]`` or ``[experts, out]``."""
    experts = spec.mlp.experts
    prefix, part, kind = match.groups()
    assert experts is not None, "the caller has looked"
    if tensor.shape[0] != experts.count or len(tensor.shape) != (2 if kind == "bias" else 3):
        raise FormatError(
            f"the tensor for {match[0]} has shape {list(tensor.shape)}; expected a "
            f"{'vector' if kind == 'bias' else 'matrix'} for each of {experts.count} experts"
        )
    for i in range(experts.count):
        one = replace(tensor.rows(i, i + 1), shape=tensor.shape[1:])
        if interleaved and kind is None:
            one = _transposed(one)
        name = f"{prefix}.{i}.{part}_proj.{kind or 'weight'}"
        yield from _gate_and_up(spec, name, one, interleaved)


def _gate_and_up(spec: ModelSpec, name: str, tensor: "PackedTensor", interleaved: bool) -> "Iterator[Part]":
    """A matrix or bias that holds both, cut apart; any other as it is."""
    parts = {"gate_proj": spec.mlp.intermediate_size, "up_proj": spec.mlp.intermediate_size}
    if ".gate_up_proj." not in name:
        yield name, tensor
    elif interleaved:
        for first, part in enumerate(parts):
            yield name.replace("gate_up_proj", part), _every_second_row(tensor, first)
    else:
        yield from _rows(name, tensor, "gate_up_proj", parts)


def _transposed(tensor: "PackedTensor") -> "PackedTensor":
    """A matrix of plain numbers on its side, in the type it is stored in."""
    rows, columns = tensor.shape
    if tensor.fmt.block_size != 1:
        raise FormatError(f"the tensor {tensor.name} is of type {tensor.fmt.name}; expected plain numbers")

    def read() -> memoryview:
        import numpy as np

        items = np.frombuffer(tensor.read(), dtype=f"V{tensor.fmt.block_bytes}").reshape(rows, columns)
        return np.ascontiguousarray(items.T).view(np.uint8).reshape(-1).data

    return replace(tensor, shape=(columns, rows), read=read)


def _every_second_row(tensor: "PackedTensor", first: int) -> "PackedTensor":
    rows = tensor.shape[0]

    def read() -> memoryview:
        import numpy as np

        data = np.frombuffer(tensor.read(), dtype=np.uint8).reshape(rows, -1)
        return np.ascontiguousarray(data[first::2]).reshape(-1).data

    return replace(tensor, shape=(len(range(first, rows, 2)), *tensor.shape[1:]), read=read)


def _shifted(tensor: "PackedTensor", offset: float) -> "PackedTensor":
    return computed(tensor, tensor.shape, lambda: tensor.float32() + offset)


def scaled(tensor: "PackedTensor", factor: float) -> "PackedTensor":
    """The tensor times ``factor``, as float32."""
    return computed(tensor, tensor.shape, lambda: tensor.float32() * factor)


def computed(
    tensor: "PackedTensor", shape: tuple[int, ...], values: "Callable[[], NDArray[np.float32]]"
) -> "PackedTensor":
    """A float32 tensor of ``shape`` in the place of ``tensor``; ``values`` makes its elements when read."""

    def read() -> memoryview:
        import numpy as np

        return memoryview(np.ascontiguousarray(values(), dtype=np.float32).tobytes())

    return replace(tensor, fmt=FORMATS["F32"], shape=shape, read=read, paired_heads=None)
