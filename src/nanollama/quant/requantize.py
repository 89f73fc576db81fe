"""One packed form to another: a model's tensors and a type come in, a GGUF file of that type goes out.

Tensors stream through: each is decoded and encoded in pieces, several at a time on threads (numpy lets go of
the interpreter meanwhile), so that a model larger than memory can be quantized. What already has its type is
copied.
"""

import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nanollama.errors import UnsupportedError
from nanollama.formats.gguf import GGUFFile
from nanollama.formats.gguf_values import Typed, ValueType
from nanollama.formats.gguf_write import Packed, Payload, Value, write_gguf
from nanollama.quant.bits import Bytes
from nanollama.quant.decode import dequantize
from nanollama.quant.encode import quantize
from nanollama.quant.formats import QuantFormat
from nanollama.quant.plan import FILE_TYPES, QUANTIZATION_VERSION, Stored, file_targets, file_type, misfits

PIECE_WEIGHTS = 1 << 18
"""Weights that a thread takes at a time; a multiple of all block sizes."""

MAX_THREADS = 4

_SPLIT_KEYS = ("split.no", "split.count", "split.tensors.count")


@dataclass(frozen=True, slots=True)
class SourceTensor(Stored):
    """A tensor that can be read. ``release`` gives up the memory that this took."""

    read: Callable[[], Packed]
    release: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Source:
    """A model to be written: ``label`` is what notices call it, ``metadata`` that of the file."""

    label: str
    metadata: Mapping[str, Value]
    tensors: Sequence[SourceTensor]

    @property
    def table(self) -> dict[str, Stored]:
        """The tensors by name, as the plan takes them."""
        return {tensor.name: tensor for tensor in self.tensors}


@dataclass(frozen=True, slots=True)
class Outcome:
    """Bytes of the weights as they were and as they are.

    ``misfits`` maps the matrices whose rows are no whole number of blocks of the type to the type they got.
    """

    before: int
    after: int
    misfits: Mapping[str, str]


def transcoded(
    source: QuantFormat, data: Packed | NDArray[np.uint8], target: QuantFormat, *, name: str
) -> Iterator[Bytes]:
    """The packed bytes of a tensor in another format, piece by piece, in order.

    FormatError or UnsupportedError, calling the tensor ``name``, if its weights can't be decoded or encoded.
    """
    packed = np.frombuffer(data, np.uint8)
    total = packed.size // source.block_bytes * source.block_size

    def piece(start: int) -> Bytes:
        count = min(PIECE_WEIGHTS, total - start)
        block = packed[source.nbytes(start) : source.nbytes(start + count)]
        return quantize(target, dequantize(source, block, (count,), name=name), name=name)

    workers = min(MAX_THREADS, _usable_cpus(), -(-total // PIECE_WEIGHTS))
    under_way: deque[Future[Bytes]] = deque()
    with ThreadPoolExecutor(max(1, workers)) as pool:
        try:
            for start in range(0, total, PIECE_WEIGHTS):
                under_way.append(pool.submit(piece, start))
                if len(under_way) > 2 * workers:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            for future in under_way:
                future.cancel()


def requantize(source: Source, destination: Path, wanted: str, *, on_bytes: Callable[[int], None]) -> Outcome:
    """Write a model to ``destination`` with its matrices in ``wanted``, what ``plan.file_type`` takes.

    ``on_bytes`` is called with the number of bytes of weights written so far; ``planned_bytes`` says what
    they will be in the end. The destination appears when it is complete.

    Raises:
        UsageError: there is no such type.
        UnsupportedError: a tensor is of a type that can't be decoded.
        FormatError: a tensor holds weights that are infinite, not a number or too large for the type.
    """
    wanted = file_type(wanted)
    targets = file_targets(source.table, wanted)
    for tensor in source.tensors:
        if targets[tensor.name] != tensor.fmt and not tensor.fmt.decodable:
            raise UnsupportedError(
                f"the tensor {tensor.name} is of type {tensor.fmt.name}, which can't be decoded; "
                "quantize from an F16 or F32 file"
            )
    written = 0

    def payload(tensor: SourceTensor, target: QuantFormat) -> Callable[[], Iterator[Packed]]:
        def pieces() -> Iterator[Packed]:
            nonlocal written
            for piece in _packed_as(tensor, target):
                yield piece
                written += len(piece)
                on_bytes(written)
            tensor.release()

        return pieces

    table: list[tuple[str, tuple[int, ...], QuantFormat, Payload]] = [
        (tensor.name, tensor.shape, targets[tensor.name], payload(tensor, targets[tensor.name]))
        for tensor in source.tensors
    ]
    write_gguf(destination, _metadata(source, wanted), table)
    before = sum(tensor.fmt.nbytes(prod(tensor.shape)) for tensor in source.tensors)
    return Outcome(before, written, {name: targets[name].name for name in misfits(source.table, wanted)})


def file_source(file: GGUFFile) -> Source:
    """The model in an open file; one in several parts becomes one file."""
    tensors = [
        SourceTensor(
            info.name,
            info.shape,
            info.fmt,
            read=partial(file.data, info.name),
            release=partial(file.release, info.name),
        )
        for info in file.tensors.values()
    ]
    metadata = {key: file.typed(key) for key in file.metadata if key not in _SPLIT_KEYS}
    return Source(file.path.name, metadata, tensors)


def planned_bytes(source: Source, wanted: str) -> int:
    """Bytes that the weights of a model take in the type ``wanted``."""
    table = source.table
    targets = file_targets(table, wanted)
    return sum(targets[name].nbytes(prod(tensor.shape)) for name, tensor in table.items())


def _packed_as(tensor: SourceTensor, target: QuantFormat) -> Iterator[Packed]:
    data = tensor.read()
    if target == tensor.fmt:
        yield data
        return
    for piece in transcoded(tensor.fmt, data, target, name=f"the tensor {tensor.name}"):
        yield piece.data


def _metadata(source: Source, wanted: str) -> dict[str, Value]:
    """The metadata of the model with what describes the weights set anew."""
    return {
        **source.metadata,
        "general.file_type": Typed(ValueType.UINT32, FILE_TYPES[wanted]),
        "general.quantization_version": Typed(ValueType.UINT32, QUANTIZATION_VERSION),
    }


def _usable_cpus() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
