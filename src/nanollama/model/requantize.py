"""Quantizing while loading: packed tensors and a width come in, packed tensors of that width or less go out.

Nothing is converted until a backend reads a tensor, and then one tensor at a time. Backends see no difference
to a file that was quantized so.
"""

from collections.abc import Mapping
from dataclasses import replace
from math import prod

from nanollama.errors import UsageError
from nanollama.model.checkpoint import PackedTensor
from nanollama.quant.formats import QuantFormat
from nanollama.quant.plan import AT_LOAD, Stored, is_matrix, size_text, target_format


def requantized(tensors: Mapping[str, PackedTensor], width: str) -> tuple[Mapping[str, PackedTensor], str]:
    """Every matrix that is wider than ``width`` (``q8`` or ``q4``) quantized to it and the rest as it is, and
    the line that says what this did to their size.

    Raises:
        UsageError: another width.
        FormatError: when such a tensor is read, and its weights are infinite, not a number or too large.
    """
    check_width(width)
    head = "lm_head.weight" if "lm_head.weight" in tensors else "model.embed_tokens.weight"
    changed = {}
    for name, tensor in tensors.items():
        stored = Stored(name, tensor.shape, tensor.fmt)
        target = target_format(stored, AT_LOAD[width], is_head=name == head)
        if is_matrix(stored) and tensor.fmt.bits_per_weight > target.bits_per_weight:
            changed[name] = _converted(tensor, target)
    weights = sum(prod(tensor.shape) for tensor in tensors.values())
    result = {**tensors, **changed}
    size = size_text(sum(t.fmt.nbytes(prod(t.shape)) for t in result.values()))
    if changed:
        text = f"Quantized: {size} ({width.upper()})   [vs ~{size_text(4 * weights)} float32]"
    else:
        text = f"Not quantized: no matrix gets smaller in {width.upper()} (weights of {size})"
    return result, text


def check_width(width: str) -> None:
    """Raises UsageError unless ``width`` is one of those that models can be quantized to at load time."""
    if width not in AT_LOAD:
        raise UsageError(f"quantize is {width!r}; expected one of {', '.join(AT_LOAD)}")


def _converted(tensor: PackedTensor, target: QuantFormat) -> PackedTensor:
    def read() -> memoryview:
        import numpy as np

        from nanollama.quant.requantize import transcoded

        out = np.empty(target.nbytes(prod(tensor.shape)), np.uint8)
        start = 0
        for piece in transcoded(
            tensor.fmt, tensor.packed().reshape(-1), target, name=f"the tensor {tensor.name}"
        ):
            out[start : start + piece.size] = piece
            start += piece.size
        return out.data

    return replace(tensor, fmt=target, read=read, paired_heads=None)
