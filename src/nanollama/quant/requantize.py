"""One packed form to another: a model file and a type come in, a file of that type goes out.

Tensors stream through: each is decoded and encoded in pieces, several at a time on threads (numpy lets go of
the interpreter meanwhile), so that a model larger than memory can be quantized. What already has its type is
copied.
"""

import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nanollama.errors import UnsupportedError, UsageError
from nanollama.formats.gguf import GGUFFile
from nanollama.formats.gguf_values import Typed, ValueType
from nanollama.formats.gguf_write import Payload, write_gguf
from nanollama.quant.bits import Bytes
from nanollama.quant.decode import dequantize
from nanollama.quant.encode import quantize
from nanollama.quant.formats import QuantFormat
from nanollama.quant.plan import FILE_TYPES, QUANTIZATION_VERSION, Stored, file_targets, misfits

PIECE_WEIGHTS = 1 << 18
"""Weights that a thread takes at a time; a multiple of all block sizes."""

MAX_THREADS = 4

_SPLIT_KEYS = ("split.no", "split.count", "split.tensors.count")


@dataclass(frozen=True, slots=True)
class Outcome:
    """Bytes of the weights as they were and as they are.

    ``misfits`` maps the matrices whose rows are no whole number of blocks of the type to the type they got.
    """

    before: int
    after: int
    misfits: Mapping[str, str]


def transcoded(
    source: QuantFormat, data: memoryview | NDArray[np.uint8], target: QuantFormat, *, name: str
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


def requantize_file(
    file: GGUFFile, destination: Path, wanted: str, *, on_bytes: Callable[[int], None]
) -> Outcome:
    """Write the model of an open file to ``destination`` with its matrices in the type ``wanted``.

    ``on_bytes`` is called with the number of bytes of weights written so far; ``plan.file_targets`` says what
    they will be in the end. The destination appears when it is complete.

    Raises:
        UsageError: ``wanted`` is not one of ``plan.FILE_TYPES``.
        UnsupportedError: a tensor is of a type that can't be decoded.
        FormatError: a tensor holds weights that are infinite, not a number or too large for the type.
    """
    if wanted not in FILE_TYPES:
        raise UsageError(f"{wanted!r} is no type to quantize to; expected one of {', '.join(FILE_TYPES)}")
    tensors = stored_tensors(file)
    targets = file_targets(tensors, wanted)
    for name, tensor in tensors.items():
        if targets[name] != tensor.fmt and not tensor.fmt.decodable:
            raise UnsupportedError(
                f"the tensor {name} is of type {tensor.fmt.name}, which can't be decoded; "
                "quantize from an F16 or F32 file"
            )
    written = 0

    def payload(tensor: Stored, target: QuantFormat) -> Callable[[], Iterator[memoryview]]:
        def pieces() -> Iterator[memoryview]:
            nonlocal written
            for piece in _packed_as(file, tensor, target):
                yield piece
                written += piece.nbytes
                on_bytes(written)
            file.release(tensor.name)

        return pieces

    table: list[tuple[str, tuple[int, ...], QuantFormat, Payload]] = [
        (name, tensor.shape, targets[name], payload(tensor, targets[name]))
        for name, tensor in tensors.items()
    ]
    write_gguf(destination, _metadata(file, wanted), table)
    before = sum(tensor.nbytes for tensor in file.tensors.values())
    return Outcome(before, written, {name: targets[name].name for name in misfits(tensors, wanted)})


def stored_tensors(file: GGUFFile) -> dict[str, Stored]:
    """The table of tensors of a file, as the plan takes it."""
    return {info.name: Stored(info.name, info.shape, info.fmt) for info in file.tensors.values()}


def planned_bytes(file: GGUFFile, wanted: str) -> int:
    """Bytes that the weights of a file take in the type ``wanted``."""
    tensors = stored_tensors(file)
    targets = file_targets(tensors, wanted)
    return sum(targets[name].nbytes(prod(tensor.shape)) for name, tensor in tensors.items())


def _packed_as(file: GGUFFile, tensor: Stored, target: QuantFormat) -> Iterator[memoryview]:
    data = file.data(tensor.name)
    if target == tensor.fmt:
        yield data
        return
    for piece in transcoded(tensor.fmt, data, target, name=f"the tensor {tensor.name}"):
        yield piece.data


def _metadata(file: GGUFFile, wanted: str) -> dict[str, Typed]:
    """The metadata of ``file`` with what describes the weights set anew; of a split model, as of one file."""
    metadata = {key: file.typed(key) for key in file.metadata if key not in _SPLIT_KEYS}
    metadata["general.file_type"] = Typed(ValueType.UINT32, FILE_TYPES[wanted])
    metadata["general.quantization_version"] = Typed(ValueType.UINT32, QUANTIZATION_VERSION)
    return metadata


def _usable_cpus() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
