"""Writing GGUF files: metadata and a stream of packed tensors come in, a whole version 3 file goes out.

The table of tensors is written from names, shapes and formats alone; each tensor's bytes are asked for when
it is their turn, so that a model larger than memory can be written.
"""

import os
import struct
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from nanollama.errors import NanollamaError, UsageError
from nanollama.formats.gguf_header import ALIGNMENTS, DEFAULT_ALIGNMENT, MAX_DIMS, MAX_NAME_BYTES, shown
from nanollama.formats.gguf_values import (
    CODES,
    LAYOUTS,
    REQUIRED_TYPES,
    Scalar,
    Typed,
    ValueType,
    type_name,
)
from nanollama.quant.formats import QuantFormat

Packed = bytes | bytearray | memoryview
Payload = Packed | Callable[[], Packed | Iterable[Packed]]
"""A tensor's bytes, or what gives them when called: all at once, or piece by piece."""

TensorSource = tuple[str, tuple[int, ...], QuantFormat, Payload]
"""Name, shape (rows, columns), format, bytes."""

_ITEM_TYPES = {
    bool: ValueType.BOOL,
    float: ValueType.FLOAT32,
    str: ValueType.STRING,
    bytes: ValueType.STRING,
}

Value = Typed | Scalar | Sequence[Scalar]


def write_gguf(path: str | Path, metadata: Mapping[str, Value], tensors: Iterable[TensorSource]) -> None:
    """Write a GGUF file; ``path`` is replaced only when everything has been written.

    A plain value gets the usual type (``inferred``), a ``Typed`` one its own; text that holds surrogates is
    written as the bytes they stand for. ``general.alignment`` in ``metadata`` is honoured.

    Raises:
        UsageError: names the key or tensor that can't be written as asked, or a ``path`` that is a device or
            a folder.
        NanollamaError: the disk is full, or does not let itself be written to.
    """
    path = Path(path)
    if path.exists() and not path.is_file():  # the new file would take the place of the device
        raise UsageError(f"{path} is there and no regular file: give the path of a file to write")
    table = list(tensors)
    alignment = _alignment(metadata)
    header = _header(metadata, table, alignment)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("xb") as file:
            file.write(header)
            _pad(file, alignment)
            for name, shape, fmt, payload in table:
                _write_tensor(file, name, fmt.nbytes(prod(shape)), payload)
                _pad(file, alignment)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException as error:
        with suppress(OSError):
            part.unlink()
        if isinstance(error, OSError):
            raise NanollamaError(
                f"{path} could not be written ({error.strerror or error}): check the disk and its permissions"
            ) from error
        raise


def inferred(key: str, value: Value) -> Typed:
    """A plain value with the type it gets.

    Integers take 32 bits if they fit, else 64, unsigned unless negative; in arrays they are always signed.
    Floats take 32 bits.

    Raises:
        UsageError: an array is empty or mixed, and needs a ``Typed``.
    """
    if isinstance(value, Typed):
        return value
    if isinstance(value, bool):
        return Typed(ValueType.BOOL, value)
    if isinstance(value, int):
        if value < 0:
            return Typed(ValueType.INT32 if value >= -(2**31) else ValueType.INT64, value)
        return Typed(ValueType.UINT32 if value < 2**32 else ValueType.UINT64, value)
    if isinstance(value, float):
        return Typed(ValueType.FLOAT32, value)
    if isinstance(value, str | bytes):
        return Typed(ValueType.STRING, value)
    kinds = {type(item) for item in value} if isinstance(value, Sequence) else set()
    if kinds == {int}:
        narrow = all(-(2**31) <= int(item) < 2**31 for item in value)
        return Typed(ValueType.ARRAY, value, ValueType.INT32 if narrow else ValueType.INT64)
    if len(kinds) == 1 and (item_type := _ITEM_TYPES.get(kinds.pop())) is not None:
        return Typed(ValueType.ARRAY, value, item_type)
    raise UsageError(f"metadata key {shown(key)} has no evident type: {shown(value)}; give it as Typed")


def _alignment(metadata: Mapping[str, Value]) -> int:
    value = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    alignment = value.value if isinstance(value, Typed) else value
    if not isinstance(alignment, int) or alignment not in ALIGNMENTS:
        raise UsageError(
            f"metadata key 'general.alignment' is {shown(alignment)}, but must be a power of two from "
            f"{ALIGNMENTS[0]} to {ALIGNMENTS[-1]}"
        )
    return alignment


def _header(metadata: Mapping[str, Value], table: list[TensorSource], alignment: int) -> bytes:
    out = bytearray(struct.pack("<4sIQQ", b"GGUF", 3, len(table), len(metadata)))
    for key, value in metadata.items():
        typed = inferred(key, value)
        if REQUIRED_TYPES.get(key, (typed.kind, typed.item)) != (typed.kind, typed.item):
            raise UsageError(
                f"metadata key {key!r} must be of type {type_name(*REQUIRED_TYPES[key])}, "
                f"not {type_name(typed.kind, typed.item)}"
            )
        out += _named(key, "metadata key") + struct.pack("<I", typed.kind)
        try:
            out += _packed_value(typed)
        except (struct.error, OverflowError, TypeError, ValueError, KeyError) as error:
            raise UsageError(
                f"metadata key {shown(key)} cannot be {shown(typed.value)} of type {typed.kind.name}: {error}"
            ) from None
    offset = 0
    names: set[str] = set()
    for name, shape, fmt, _ in table:
        _check_tensor(name, shape, fmt, names)
        names.add(name)
        out += _named(name, "tensor") + struct.pack("<I", len(shape))
        out += struct.pack(f"<{len(shape)}Q", *reversed(shape))
        out += struct.pack("<IQ", fmt.type_id, offset)
        offset += -(-fmt.nbytes(prod(shape)) // alignment) * alignment
    return bytes(out)


def _check_tensor(name: str, shape: tuple[int, ...], fmt: QuantFormat, names: set[str]) -> None:
    if name in names:
        raise UsageError(f"tensor {shown(name)} appears twice")
    if not 1 <= len(shape) <= MAX_DIMS or min(shape) < 1 or shape[-1] % fmt.block_size:
        raise UsageError(
            f"tensor {shown(name)} has the shape {list(shape)}, but {fmt.name} needs 1 to {MAX_DIMS} "
            f"dimensions of at least 1 and rows of a multiple of {fmt.block_size}"
        )


def _named(name: str, what: str) -> bytes:
    try:
        raw = name.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{what} {shown(name)} is not text that UTF-8 can hold") from None
    if not 0 < len(raw) <= MAX_NAME_BYTES:
        raise UsageError(f"{what} {shown(name)} has {len(raw)} bytes, but 1 to {MAX_NAME_BYTES} are allowed")
    return struct.pack("<Q", len(raw)) + raw


def _packed_value(typed: Typed) -> bytes:
    value: Any = typed.value
    if typed.kind is ValueType.STRING:
        return _packed_string(value)
    if typed.kind is not ValueType.ARRAY:
        return LAYOUTS[typed.kind].pack(value)
    if typed.item is None:
        raise TypeError("an array needs the type of its items")
    if typed.item is ValueType.STRING:
        packed = b"".join(map(_packed_string, value))
    else:
        items = array(CODES[typed.item], value)
        if struct.pack("=H", 1) != struct.pack("<H", 1):
            items.byteswap()
        packed = items.tobytes()
    return struct.pack("<IQ", typed.item, len(value)) + packed


def _packed_string(text: str | bytes) -> bytes:
    if not isinstance(text, str | bytes):
        raise TypeError("a string is needed")
    raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(raw)) + raw


def _write_tensor(file: BinaryIO, name: str, nbytes: int, payload: Payload) -> None:
    source = payload() if callable(payload) else payload
    pieces = [source] if isinstance(source, Packed) else source
    start = file.tell()
    for piece in pieces:
        file.write(piece)
    written = file.tell() - start
    if written != nbytes:
        raise UsageError(
            f"tensor {shown(name)} came with {written} bytes, but its shape and format need {nbytes}"
        )


def _pad(file: BinaryIO, alignment: int) -> None:
    file.write(bytes(-file.tell() % alignment))
