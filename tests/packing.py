"""Random GGUF weights in every type, packed for the kernels, with the float64 product to compare with."""

import ctypes
from ctypes import c_int64, c_void_p
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from nanollama.backends.native.library import Activations, Kernels, Library, Matrix, Segment
from nanollama.quant.decode import dequantize
from nanollama.quant.formats import FORMATS

BLOCK_TYPES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "MXFP4")
TYPES = (*BLOCK_TYPES, "F16", "BF16", "F32")

HALF_FIELDS = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q4_K": (0, 2), "Q5_K": (0, 2),
    "Q6_K": (208,), "IQ4_NL": (0,),
}  # fmt: skip
"""Byte offsets of the float16 fields in a block of each type."""


def random_rows(kind: str, rows: int, cols: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Rows of packed weights ``[rows, row bytes]``: all quants random, scales of ordinary size."""
    fmt = FORMATS[kind]
    if kind in ("F16", "F32", "BF16"):
        values = rng.standard_normal((rows, cols)).astype(np.float32)
        if kind == "BF16":
            return np.ascontiguousarray(values.view(np.uint16)[:, 1::2]).view(np.uint8).reshape(rows, -1)
        return np.ascontiguousarray(values.astype("<f2" if kind == "F16" else "<f4")).view(np.uint8)
    blocks = rng.integers(0, 256, (rows, cols // fmt.block_size, fmt.block_bytes), np.uint8)
    if kind == "MXFP4":
        blocks[..., 0] = rng.integers(118, 130, blocks.shape[:2])
    set_halves(kind, blocks, rng.uniform(-0.02, 0.02, blocks.shape[:2]))
    return blocks.reshape(rows, -1)


def set_halves(kind: str, blocks: NDArray[np.uint8], values: NDArray[np.float64]) -> None:
    """Write scales (and minimums: -8 of them) into the float16 fields of ``blocks[..., block bytes]``."""
    for index, offset in enumerate(HALF_FIELDS.get(kind, ())):
        halves = (values * (-8 if index else 1)).astype("<f2")
        blocks[..., offset : offset + 2] = halves[..., None].view(np.uint8)


def blocks_of(kind: str, packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The same memory as ``[rows, blocks, block bytes]``."""
    return packed.reshape(len(packed), -1, FORMATS[kind].block_bytes)


def decoded(kind: str, packed: NDArray[np.uint8], cols: int) -> NDArray[np.float32]:
    return dequantize(FORMATS[kind], np.ascontiguousarray(packed), (len(packed), cols))


@dataclass
class Packed:
    """A matrix in the kernels' layout, and the memory it lies in."""

    matrix: Matrix
    rows: int
    cols: int
    memory: list[object] = field(default_factory=list)

    @property
    def units(self) -> int:
        return sum((self.matrix.segments[i].rows + 7) // 8 for i in range(self.matrix.segment_count))


def aligned(nbytes: int) -> NDArray[np.uint8]:
    """Zeroed bytes at a 64-byte boundary."""
    memory = np.zeros(nbytes + 63, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + nbytes]


def pack(library: Library, parts: list[tuple[str, NDArray[np.uint8]]], cols: int) -> Packed:
    """Packs ``(type, rows)`` parts into segments of one matrix."""
    retile = library.bind(
        "nl_retile", c_int64, c_int64, c_void_p, c_int64, c_int64, c_int64, c_void_p, c_int64, c_int64
    )
    segments = (Segment * len(parts))()
    memory: list[object] = [segments]
    column = 0
    for segment, (kind, packed) in zip(segments, parts, strict=True):
        packed = np.ascontiguousarray(packed)
        rows = len(packed)
        packed_kind = library.nl_kind_of(FORMATS[kind].type_id)
        data = aligned(library.nl_packed_bytes(packed_kind, rows, cols))
        done = retile(
            FORMATS[kind].type_id, packed.ctypes.data, packed.shape[1], rows, cols, data.ctypes.data, 0,
            (rows + 7) // 8,
        )  # fmt: skip
        assert done == 0
        segment.data, segment.rows, segment.out_column, segment.kind = (
            data.ctypes.data,
            rows,
            column,
            packed_kind,
        )
        memory.append(data)
        column += rows
    return Packed(Matrix(segments, len(parts), cols), column, cols, memory)


@dataclass
class Inputs:
    """Activation rows with their quantized form."""

    struct: Activations
    values: NDArray[np.float32]
    quants: NDArray[np.int8]
    meta: NDArray[np.float32]

    @property
    def restored(self) -> NDArray[np.float64]:
        """The activations as the quantized kernels see them."""
        return self.quants.astype(np.float64) * np.repeat(self.meta[:, :, 0], 32, axis=1)


def inputs(kernels: Kernels, values: NDArray[np.float32]) -> Inputs:
    values = np.ascontiguousarray(values, np.float32)
    rows, cols = values.shape
    quants = np.zeros((rows, cols), np.int8)
    meta = np.zeros((rows, cols // 32, 4), np.float32)
    struct = Activations(values.ctypes.data, cols, quants.ctypes.data, meta.ctypes.data, cols)
    if cols % 32 == 0:
        kernels.quantize(ctypes.byref(struct), 0, rows * (cols // 32))
    return Inputs(struct, values, quants, meta)


def matmul(
    kernels: Kernels,
    weights: Packed,
    x: Inputs,
    *,
    bias: NDArray[np.float32] | None = None,
    units: tuple[int, int] | None = None,
    next_weights: int | None = None,
) -> NDArray[np.float32]:
    """The product ``[rows of x, rows of weights]``; NaN wherever the kernel wrote nothing."""
    rows = len(x.values)
    out = np.full((rows, weights.rows), np.nan, np.float32)
    begin, end = units or (0, weights.units)
    kernels.matmul(
        ctypes.byref(weights.matrix), ctypes.byref(x.struct), rows, out.ctypes.data, weights.rows,
        None if bias is None else bias.ctypes.data, begin, end,
        next_weights,
    )  # fmt: skip
    return out
