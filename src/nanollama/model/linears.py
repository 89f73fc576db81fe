"""Linear layers of quantized checkpoints: the tensors that one is stored in come in, one packed matrix comes
out.

Data types and shapes are checked when a folder is opened, and so is what decides about the format: scales,
zeros and the order of groups. Codes are read when a backend reads the matrix.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from nanollama.errors import FormatError, UnsupportedError
from nanollama.model.checkpoint import PackedTensor
from nanollama.quant.formats import FORMATS, QuantFormat

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from nanollama.model.quantized import StoredTensor
    from nanollama.quant.bits import Floats
    from nanollama.quant.grouped import Groups, Order

INTS = ("I32",)
REALS = ("F16", "BF16", "F32")
WIDTHS = (4, 8)
"""Bits of an integer that are read."""


class Layer:
    """The tensors ``<stem>.<part>`` of one layer; ``taken`` are the names of those that were asked for."""

    def __init__(self, stem: str, tensors: "Mapping[str, StoredTensor]") -> None:
        self.stem = stem
        self.taken: list[str] = []
        self._tensors = tensors

    def has(self, part: str) -> bool:
        return f"{self.stem}.{part}" in self._tensors

    def tensor(self, part: str, dtypes: tuple[str, ...]) -> "StoredTensor":
        """One of the tensors. FormatError if it is missing or of another data type than ``dtypes``."""
        name = f"{self.stem}.{part}"
        tensor = self._tensors.get(name)
        if tensor is None:
            raise FormatError(f"{self.stem} is quantized, but its tensor {part} is missing; fetch it again")
        if tensor.dtype not in dtypes:
            raise FormatError(
                f"the tensor {name} is of data type {tensor.dtype}; expected {' or '.join(dtypes)}"
            )
        self.taken.append(name)
        return tensor

    def matrix(
        self, part: str, dtypes: tuple[str, ...], shape: tuple[int | None, int | None]
    ) -> "StoredTensor":
        """The same, a matrix of ``shape``, ``None`` for any size but 0."""
        tensor = self.tensor(part, dtypes)
        if len(tensor.shape) != 2 or any(
            size == 0 or wanted not in (None, size) for size, wanted in zip(tensor.shape, shape, strict=True)
        ):
            wanted = " x ".join("any" if size is None else str(size) for size in shape)
            raise FormatError(
                f"the tensor {tensor.name} has shape {list(tensor.shape)}; expected a matrix of {wanted} "
                "from the tensors beside it"
            )
        return tensor

    def packed(
        self,
        source: "StoredTensor",
        shape: tuple[int, int],
        fmt: QuantFormat,
        convert: "Callable[[NDArray[np.uint8]], NDArray[np.uint8]]",
    ) -> PackedTensor:
        """The layer's weight; ``convert`` makes its bytes of those of ``source``, once it is read."""

        def read() -> memoryview:
            import numpy as np

            return convert(np.frombuffer(source.read(), np.uint8)).data

        return PackedTensor(f"{self.stem}.weight", fmt, shape, read, release=source.release)


def gptq_layer(layer: Layer, *, bits: int, version: int) -> PackedTensor:
    """A layer as GPTQ stores it: see ``quant/gptq.py``."""
    from nanollama.quant import gptq

    per_word = 32 // bits
    weights = layer.matrix("qweight", INTS, (None, None))
    columns, rows = weights.shape[0] * per_word, weights.shape[1]
    scales = layer.matrix("scales", REALS, (None, rows))
    count = scales.shape[0]
    zeros = layer.matrix("qzeros", INTS, (count, -(-rows // per_word)))
    order = _order(layer, "g_idx", columns, count)

    def groups() -> "Groups":
        return gptq.gptq_groups(_words(zeros), _reals(scales), order, bits=bits, version=version)

    return _grouped(layer, weights, (rows, columns), bits, groups, lambda w: gptq.gptq_codes(w, bits))


def awq_layer(layer: Layer) -> PackedTensor:
    """A layer as AWQ's GEMM layout stores it: see ``quant/awq.py``."""
    from nanollama.quant import awq

    weights = layer.matrix("qweight", INTS, (None, None))
    columns, rows = weights.shape[0], weights.shape[1] * 32 // awq.BITS
    scales = layer.matrix("scales", REALS, (None, rows))
    _order(layer, None, columns, scales.shape[0])
    zeros = layer.matrix("qzeros", INTS, (scales.shape[0], weights.shape[1]))

    def groups() -> "Groups":
        return awq.awq_groups(_words(zeros), _reals(scales))

    return _grouped(layer, weights, (rows, columns), awq.BITS, groups, awq.awq_codes)


def packed_layer(layer: Layer) -> PackedTensor:
    """A layer of packed integers as compressed-tensors stores it: see ``quant/compressed.py``."""
    import numpy as np

    from nanollama.quant import compressed

    weights = layer.matrix("weight_packed", INTS, (None, None))
    stated = layer.tensor("weight_shape", ("I64", "I32"))
    shape = np.frombuffer(stated.read(), "<i8" if stated.dtype == "I64" else "<i4").tolist()
    rows, words = weights.shape
    widths = [bits for bits in WIDTHS if len(shape) == 2 and words == -(-shape[1] * bits // 32) > 0]
    if not widths or shape[0] != rows:
        raise UnsupportedError(
            f"{layer.stem} has packed weights of shape {[rows, words]} for a matrix of {shape}; expected "
            f"{' or '.join(map(str, WIDTHS))} bits a weight"
        )
    bits, columns = widths[0], shape[1]
    scales = layer.matrix("weight_scale", REALS, (rows, None))
    order = _order(layer, "weight_g_idx", columns, scales.shape[1])
    zeros = None
    if layer.has("weight_zero_point"):
        zeros = layer.matrix("weight_zero_point", INTS, (-(-rows * bits // 32), scales.shape[1]))

    def groups() -> "Groups":
        words = None if zeros is None else _words(zeros)
        return compressed.packed_groups(words, _reals(scales), order, bits=bits)

    codes = partial(compressed.packed_codes, bits=bits, columns=columns)
    return _grouped(layer, weights, (rows, columns), bits, groups, codes)


def int8_layer(layer: Layer) -> PackedTensor:
    """A layer of unpacked int8 as compressed-tensors stores it."""
    import numpy as np

    from nanollama.quant import compressed

    weights = layer.matrix("weight", ("I8",), (None, None))
    rows, columns = weights.shape
    scales = _scales(layer, layer.tensor("weight_scale", REALS), (rows, columns))
    _order(layer, None, columns, scales.shape[1])
    zeros = None
    if layer.has("weight_zero_point"):
        stated = layer.matrix("weight_zero_point", ("I8",), scales.shape)
        zeros = np.frombuffer(stated.read(), np.int8).reshape(scales.shape)
    groups = compressed.plain_groups(zeros, scales)
    return _grouped(layer, weights, (rows, columns), 8, lambda: groups, compressed.plain_codes)


def fp8_layer(layer: Layer, *, block: tuple[int, int] | None) -> PackedTensor:
    """A layer of 8-bit floats: see ``quant/fp8.py``. ``block`` is what a scale covers, if it is said."""
    from nanollama.quant import fp8

    weights = layer.matrix("weight", ("F8_E4M3",), (None, None))
    part = "weight_scale_inv" if layer.has("weight_scale_inv") else "weight_scale"
    scale = layer.tensor(part, REALS)
    rows, columns = weights.shape
    if block is not None and scale.shape == (-(-rows // block[0]), -(-columns // block[1])):
        scales, covered = _reals(scale), block
    else:
        scales = _scales(layer, scale, (rows, columns), one_group=True)
        covered = (1, columns)
    fmt = fp8.exact_format(scales)
    return layer.packed(
        weights,
        (rows, columns),
        fmt,
        lambda data: fp8.packed(data.reshape(rows, columns), scales, covered, fmt),
    )


def _grouped(
    layer: Layer,
    weights: "StoredTensor",
    shape: tuple[int, int],
    bits: int,
    groups: "Callable[[], Groups]",
    codes: "Callable[[NDArray[Any]], NDArray[np.uint8]]",
) -> PackedTensor:
    """A layer of integers. Its groups are made anew when it is read: those of a large model take memory."""
    from nanollama.quant import grouped

    fmt = grouped.exact_format(bits, shape[1], groups())
    words = "<u4" if weights.dtype in INTS else "u1"
    return layer.packed(
        weights,
        shape,
        fmt,
        lambda data: grouped.packed(codes(data.view(words).reshape(weights.shape)), groups(), fmt),
    )


def _order(layer: Layer, part: str | None, columns: int, count: int) -> "Order | None":
    """The group of each input, ``None`` if equal groups lie one after another.

    FormatError if inputs and groups do not fit.
    """
    import numpy as np

    if part is None or not layer.has(part):
        if columns % count:
            raise FormatError(f"{layer.stem} has {columns} inputs, which do not form {count} equal groups")
        return None
    tensor = layer.tensor(part, INTS)
    order = np.frombuffer(tensor.read(), "<i4")
    if tensor.shape != (columns,) or not ((order >= 0) & (order < count)).all():
        raise FormatError(
            f"the tensor {tensor.name} does not name one of {count} groups for each of {columns} inputs"
        )
    in_order = columns % count == 0 and (order == np.arange(columns) // (columns // count)).all()
    return None if in_order else order


def _scales(
    layer: Layer, scale: "StoredTensor", shape: tuple[int, int], *, one_group: bool = False
) -> "Floats":
    """The scales of a whole tensor, of each row or of groups in it, as ``[rows, groups]``."""
    import numpy as np

    rows = shape[0]
    values = _reals(scale)
    if values.size == 1:
        return np.full((rows, 1), values.reshape(()), np.float32)
    groups = values.size // rows
    if scale.shape not in ((rows,), (rows, groups)) or (one_group and groups != 1):
        raise FormatError(
            f"the tensor {scale.name} has shape {list(scale.shape)}; expected one scale, one for each of the "
            f"{rows} rows of {layer.stem}, or those of the blocks that config.json states"
        )
    return values.reshape(rows, groups)


def _reals(tensor: "StoredTensor") -> "Floats":
    stored = PackedTensor(tensor.name, FORMATS[tensor.dtype], tensor.shape, tensor.read)
    return stored.float32()


def _words(tensor: "StoredTensor") -> "NDArray[np.uint32]":
    import numpy as np

    return np.frombuffer(tensor.read(), "<u4").reshape(tensor.shape)
