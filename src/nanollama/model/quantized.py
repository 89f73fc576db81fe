"""The tensors of a checkpoint folder as packed tensors: what its files store in, what backends read out.

Plain floating-point tensors go through as they are. A checkpoint that says how it was quantized is converted
here, or refused by name.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from nanollama.errors import FormatError, UnsupportedError
from nanollama.model.checkpoint import PackedTensor
from nanollama.model.linears import (
    WIDTHS,
    Layer,
    awq_layer,
    fp8_layer,
    gptq_layer,
    int8_layer,
    packed_layer,
)
from nanollama.model.mxfp4 import split_mxfp4
from nanollama.quant.formats import FORMATS

_PLAIN = {"F64": "F64", "F32": "F32", "F16": "F16", "BF16": "BF16"}
"""Data types of safetensors that hold weights as they are -> the tensor type of the same bytes."""

_RUNNING_SCALE = re.compile(
    r"\.(((input|output|activation)_(scale|zero_point))|([qkv]|prob)_(scale|zero_point))(_ub)?\Z"
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor as a safetensors file stores it. ``release`` gives up the memory that reading took."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    read: Callable[[], memoryview]
    release: Callable[[], None]


Split = tuple[dict[str, PackedTensor], dict[str, StoredTensor]]
"""Weights that were quantized, and the tensors that are no part of one."""


def unpacked(config: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> dict[str, PackedTensor]:
    """The parameters that ``tensors`` hold, by name; ``config`` is config.json.

    Raises:
        FormatError: config.json says of no known kind how the weights are quantized, or the tensors of a
            layer do not belong together.
        UnsupportedError: the weights are quantized in a way that is not read, or are no numbers with a point.
    """
    method, settings = quantization_of(config)
    if method is None:
        return {name: as_stored(tensor) for name, tensor in tensors.items()}
    reader = _READERS.get(method)
    if reader is None:
        raise UnsupportedError(
            f"the checkpoint is quantized by {method}, and what is read is {', '.join(sorted(_READERS))}; "
            "use the original checkpoint with --quantize, or a GGUF file"
        )
    found, rest = reader(settings, tensors)
    return found | {name: as_stored(tensor) for name, tensor in rest.items()}


def quantization_of(config: Mapping[str, Any]) -> tuple[str | None, Mapping[str, Any]]:
    """How the weights are quantized (``gptq``, ``awq``, ``fp8``, ...), ``None`` if they are not, and what is
    said about it."""
    for key in ("quantization_config", "compression_config", "quantization"):
        found = config.get(key)
        if found is None:
            continue
        if not isinstance(found, dict):
            raise FormatError(f"{key} in config.json is {found!r:.60}; expected an object")
        method = found.get("quant_method", "mlx" if key == "quantization" else None)
        if not isinstance(method, str):
            raise FormatError(f"quant_method in config.json is {method!r:.60}; expected the name of a method")
        return method, found
    return None, {}


def as_stored(tensor: StoredTensor) -> PackedTensor:
    """A floating-point tensor without a change. UnsupportedError for one of another data type."""
    if tensor.dtype not in _PLAIN:
        raise UnsupportedError(
            f"the tensor {tensor.name} is of data type {tensor.dtype}, and config.json names no "
            f"quantization that explains it; expected one of {', '.join(_PLAIN)}"
        )
    return PackedTensor(
        tensor.name, FORMATS[_PLAIN[tensor.dtype]], tensor.shape, tensor.read, release=tensor.release
    )


def _gptq(settings: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> Split:
    bits = _one_of(settings, "bits", WIDTHS)
    formats = {"gptq": 1, "gptq_v2": 2}
    version = formats[_one_of(settings, "checkpoint_format", tuple(formats), default="gptq")]
    if settings.get("dynamic"):
        raise UnsupportedError(
            "the checkpoint is quantized by gptq with other settings for some layers (dynamic in "
            "config.json), which is not read; use the original checkpoint with --quantize"
        )
    found, rest = _layers(tensors, ".qweight", partial(gptq_layer, bits=bits, version=version))
    return found, _without_padding(found, rest)


def _awq(settings: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> Split:
    _one_of(settings, "bits" if "bits" in settings else "w_bit", (4,))
    layout = next((key for key in ("version", "checkpoint_format") if key in settings), "format")
    _one_of(settings, layout, ("gemm", "GEMM"), default="gemm")
    return _layers(tensors, ".qweight", awq_layer)


def _fp8(settings: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> Split:
    read = partial(fp8_layer, block=_block(settings, "weight_block_size"))
    found, rest = _layers(tensors, ".weight", read, dtype="F8_E4M3")
    return found, _without_scales(rest)


def _compressed(settings: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> Split:
    formats = (
        "dense",
        "pack-quantized",
        "int-quantized",
        "float-quantized",
        "naive-quantized",
        "mixed-precision",
    )
    _one_of(settings, "format", formats)
    sparsity = settings.get("sparsity_config") or {}
    if (
        not isinstance(sparsity, dict)
        or sparsity.get("format", "dense") != "dense"
        or settings.get("transform_config")
    ):
        raise UnsupportedError(
            "the checkpoint's weights are compressed as sparse or turned by a transform, which is not read; "
            "use the original checkpoint with --quantize"
        )
    groups = settings.get("config_groups") or {}
    blocks = {
        _block(group["weights"], "block_structure")
        for group in (groups.values() if isinstance(groups, dict) else ())
        if isinstance(group, dict) and isinstance(group.get("weights"), dict)
    } - {None}
    if len(blocks) > 1:
        raise UnsupportedError("config.json states several sizes of blocks; expected one")
    packed, rest = _layers(tensors, ".weight_packed", packed_layer)
    ints, rest = _layers(rest, ".weight", int8_layer, dtype="I8")
    floats, rest = _layers(
        rest, ".weight", partial(fp8_layer, block=next(iter(blocks), None)), dtype="F8_E4M3"
    )
    return packed | ints | floats, _without_scales(rest)


def _mxfp4(settings: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> Split:
    return split_mxfp4(tensors)


_READERS: Mapping[str, Callable[[Mapping[str, Any], Mapping[str, StoredTensor]], Split]] = {
    "gptq": _gptq,
    "awq": _awq,
    "fp8": _fp8,
    "fbgemm_fp8": _fp8,
    "compressed-tensors": _compressed,
    "mxfp4": _mxfp4,
}


def _layers(
    tensors: Mapping[str, StoredTensor],
    ending: str,
    read: Callable[[Layer], PackedTensor],
    *,
    dtype: str | None = None,
) -> Split:
    """The layers whose tensor with ``ending`` (of ``dtype``) marks them as quantized, and what is left."""
    found: dict[str, PackedTensor] = {}
    rest = dict(tensors)
    for name, tensor in tensors.items():
        if name.endswith(ending) and dtype in (None, tensor.dtype):
            layer = Layer(name.removesuffix(ending), tensors)
            weight = read(layer)
            found[weight.name] = weight
            for taken in layer.taken:
                rest.pop(taken, None)
    return found, rest


def _without_scales(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Scales of activations and of the cache are left out: both stay numbers with a point here."""
    return {name: tensor for name, tensor in tensors.items() if not _RUNNING_SCALE.search(name)}


def _without_padding(
    found: Mapping[str, PackedTensor], tensors: Mapping[str, StoredTensor]
) -> dict[str, StoredTensor]:
    """AutoGPTQ gives a bias of zeros to layers that have none."""
    return {
        name: tensor
        for name, tensor in tensors.items()
        if not (name.endswith(".bias") and f"{name[:-5]}.weight" in found and not any(bytes(tensor.read())))
    }


def _one_of(settings: Mapping[str, Any], key: str, known: tuple[T, ...], default: T | None = None) -> T:
    value = settings.get(key, default)
    for one in known:
        if value == one and type(value) is type(one):
            return one
    raise UnsupportedError(
        f"{key} of the quantization in config.json is {value!r:.60}; what is read is "
        f"{' and '.join(map(str, known))}: use the original checkpoint with --quantize, or a GGUF file"
    )


def _block(settings: Mapping[str, Any], key: str) -> tuple[int, int] | None:
    value = settings.get(key)
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2 or any(type(n) is not int or n < 1 for n in value):
        raise FormatError(f"{key} in config.json is {value!r:.60}; expected the rows and columns of a block")
    return value[0], value[1]
