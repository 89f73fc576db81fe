"""The header of one GGUF file: a buffer comes in, where each metadata value and tensor lies goes out.

Nothing is decoded and nothing is allocated in proportion to a number that the file claims: counts, lengths
and offsets are Python integers compared with the file's size first. Every range in the returned ``Header``
lies within the buffer, tensors lie in table order and don't overlap, and every tensor's rows are whole
blocks. Layout: GGUF specification, versions 2 and 3.
"""

import reprlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from struct import Struct

from nanollama.errors import FormatError, UnsupportedError
from nanollama.formats.gguf_values import LAYOUTS, REQUIRED_TYPES, Scalar, ValueType, type_name
from nanollama.quant.formats import BY_ID, REMOVED, QuantFormat

MAX_COUNT = 65_536  # metadata keys, and tensors
MAX_NAME_BYTES = 65_535  # a key or a tensor name; the specification's bound for keys
MAX_STRING_BYTES = 16 * 1024 * 1024
MAX_ARRAY_ITEMS = 16 * 1024 * 1024
MAX_STRINGS = 4 * 1024 * 1024  # items of all string arrays together: they must be walked one by one
MAX_DIMS = 4
ALIGNMENTS = tuple(1 << bits for bits in range(3, 22))  # 8 bytes (specification) to one huge page of 2 MiB
DEFAULT_ALIGNMENT = 32

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80
_U32 = Struct("<I")
_U64 = Struct("<Q")


@dataclass(frozen=True, slots=True)
class Entry:
    """Where one metadata value lies. ``count`` is a string's bytes, an array's items, and 1 for a number."""

    kind: ValueType
    item: ValueType | None
    offset: int
    count: int
    end: int


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of the table. ``shape`` is (rows, columns), columns contiguous; ``offset`` is from the
    file's start, ``nbytes`` the length there, and ``part`` the number of the file, from 0, in a split model.
    """

    name: str
    shape: tuple[int, ...]
    fmt: QuantFormat
    offset: int
    nbytes: int
    part: int


@dataclass(frozen=True, slots=True)
class Header:
    """Everything in front of the tensor data, checked."""

    version: int
    alignment: int
    entries: dict[str, Entry]
    tensors: dict[str, TensorInfo]


def shown(value: object) -> str:
    """``value`` as it appears in a message: escaped, and shortened if it would not fit on a line."""
    return _SHORT.repr(value)


def checked_range(start: int, length: int, limit: int, what: str) -> int:
    """The end of the range ``[start, start + length)``.

    Raises:
        FormatError: it is not within ``[0, limit)``; the message names ``what`` it holds.
    """
    end = start + length
    if length < 0 or start < 0 or end > limit:
        raise FormatError(
            f"{what} needs {length} bytes at offset {start}, but the file has {limit} bytes: "
            "it is truncated or damaged; fetch it again"
        )
    return end


class _Cursor:
    """A position in the buffer that only moves over ranges which have been checked."""

    __slots__ = ("buffer", "limit", "position", "strings_left")

    def __init__(self, buffer: memoryview) -> None:
        self.buffer = buffer
        self.limit = len(buffer)
        self.position = 0
        self.strings_left = MAX_STRINGS

    def skip(self, length: int, what: str) -> int:
        """Move over ``length`` bytes; where they start."""
        start = self.position
        self.position = checked_range(start, length, self.limit, what)
        return start

    def number(self, layout: Struct, what: str) -> int:
        start = self.skip(layout.size, what)
        value: int = layout.unpack_from(self.buffer, start)[0]
        return value

    def count(self, smallest: int, what: str) -> int:
        """A 64-bit count of things that take at least ``smallest`` bytes each."""
        value = self.number(_U64, what)
        if value > MAX_COUNT:
            raise FormatError(f"{what} is {value}, but at most {MAX_COUNT} are read")
        if value * smallest > self.limit - self.position:
            raise FormatError(f"{what} is {value}, which cannot fit in a file of {self.limit} bytes")
        return value

    def name(self, what: str) -> str:
        length = self.number(_U64, f"the length of {what}")
        if not 0 < length <= MAX_NAME_BYTES:
            raise FormatError(f"{what} has a length of {length} bytes, but 1 to {MAX_NAME_BYTES} are allowed")
        start = self.skip(length, what)
        raw = bytes(self.buffer[start : start + length])
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise FormatError(f"{what} is not valid UTF-8: {shown(raw)}") from None

    def value_type(self, what: str) -> ValueType:
        number = self.number(_U32, what)
        try:
            return ValueType(number)
        except ValueError:
            raise FormatError(f"{what} is {number}, but metadata types are 0 to {max(ValueType)}") from None


def parse_header(buffer: memoryview, part: int = 0) -> Header:
    """The header of a GGUF file, all of which is in ``buffer``; ``part`` is noted in each TensorInfo.

    Raises:
        FormatError: names the key or tensor and the value that is wrong.
        UnsupportedError: says what is well formed but not read.
    """
    cursor = _Cursor(buffer)
    version = _version(cursor)
    n_tensors = cursor.count(24, "the number of tensors")
    n_keys = cursor.count(13, "the number of metadata keys")
    entries: dict[str, Entry] = {}
    for index in range(n_keys):
        key = cursor.name(f"metadata key {index}")
        if key in entries:
            raise FormatError(f"metadata key {shown(key)} appears twice")
        entries[key] = _entry(cursor, key)
    for key, (kind, item) in REQUIRED_TYPES.items():
        entry = entries.get(key)
        if entry is not None and (entry.kind, entry.item) != (kind, item):
            raise FormatError(
                f"metadata key {key!r} is of type {type_name(entry.kind, entry.item)}, "
                f"but must be {type_name(kind, item)}"
            )
    alignment = _alignment(buffer, entries)
    table = [_table_row(cursor, index) for index in range(n_tensors)]
    data_start = -(-cursor.position // alignment) * alignment
    return Header(version, alignment, entries, _placed(table, data_start, alignment, len(buffer), part))


def _version(cursor: _Cursor) -> int:
    cursor.skip(4, "the magic number")
    version = cursor.number(_U32, "the version")
    if version in (2, 3):
        return version
    if version and version & 0xFFFF == 0:
        raise UnsupportedError(
            "the file is big-endian, and only little-endian GGUF is read; convert it first"
        )
    if version == 0:
        raise FormatError("the GGUF version is 0, but versions start at 1: the file is damaged")
    raise UnsupportedError(f"GGUF version {version} is not read, only 2 and 3; convert the model again")


def _entry(cursor: _Cursor, key: str) -> Entry:
    label = f"metadata key {shown(key)}"
    kind = cursor.value_type(f"the type of {label}")
    if kind is ValueType.STRING:
        length = cursor.number(_U64, f"the string length of {label}")
        if length > MAX_STRING_BYTES:
            raise FormatError(
                f"{label} is a string of {length} bytes, but at most {MAX_STRING_BYTES} are read"
            )
        start = cursor.skip(length, label)
        return Entry(kind, None, start, length, cursor.position)
    if kind is ValueType.ARRAY:
        return _array_entry(cursor, label)
    start = cursor.skip(LAYOUTS[kind].size, label)
    if kind is ValueType.BOOL:
        _check_bools(cursor.buffer[start : start + 1], label)
    return Entry(kind, None, start, 1, cursor.position)


def _array_entry(cursor: _Cursor, label: str) -> Entry:
    item = cursor.value_type(f"the item type of {label}")
    count = cursor.number(_U64, f"the number of items of {label}")
    if item is ValueType.ARRAY:
        raise UnsupportedError(f"{label} is an array of arrays, which no model uses and which is not read")
    if count > MAX_ARRAY_ITEMS:
        raise FormatError(f"{label} is an array of {count} items, but at most {MAX_ARRAY_ITEMS} are read")
    if item is ValueType.STRING:
        start = cursor.position
        _walk_strings(cursor, count, label)
    else:
        start = cursor.skip(count * LAYOUTS[item].size, f"the array of {count} items in {label}")
        if item is ValueType.BOOL:
            _check_bools(cursor.buffer[start : cursor.position], label)
    return Entry(ValueType.ARRAY, item, start, count, cursor.position)


def _check_bools(values: memoryview, label: str) -> None:
    stray = bytes(values).translate(None, b"\0\1")
    if stray:
        raise FormatError(f"{label} is a bool with the value {stray[0]}, but only 0 and 1 are allowed")


def _walk_strings(cursor: _Cursor, count: int, label: str) -> None:
    """Move over ``count`` strings. A tight loop: vocabularies have hundreds of thousands."""
    checked_range(cursor.position, 8 * count, cursor.limit, f"the array of {count} strings in {label}")
    cursor.strings_left -= count
    if cursor.strings_left < 0:
        raise FormatError(
            f"{label} is an array of {count} strings, but a header may have {MAX_STRINGS} in all"
        )
    buffer, position, last = cursor.buffer, cursor.position, cursor.limit - 8
    unpack = _U64.unpack_from
    for index in range(count):
        if position > last:
            checked_range(position, 8, cursor.limit, f"the length of string {index} of {label}")
        length: int = unpack(buffer, position)[0]
        if length > MAX_STRING_BYTES:
            raise FormatError(
                f"string {index} of {label} has {length} bytes, but at most {MAX_STRING_BYTES} are read"
            )
        position += 8 + length
    cursor.position = checked_range(position, 0, cursor.limit, f"the last string of {label}")


def _alignment(buffer: memoryview, entries: dict[str, Entry]) -> int:
    entry = entries.get("general.alignment")
    if entry is None:
        return DEFAULT_ALIGNMENT
    alignment: int = _U32.unpack_from(buffer, entry.offset)[0]
    if alignment not in ALIGNMENTS:
        raise FormatError(
            f"metadata key 'general.alignment' is {alignment}, but must be a power of two from "
            f"{ALIGNMENTS[0]} to {ALIGNMENTS[-1]}"
        )
    return alignment


@dataclass(frozen=True, slots=True)
class _Row:
    name: str
    shape: tuple[int, ...]
    fmt: QuantFormat
    offset: int


def _table_row(cursor: _Cursor, index: int) -> _Row:
    name = cursor.name(f"the name of tensor {index}")
    label = f"tensor {shown(name)}"
    n_dims = cursor.number(_U32, f"the number of dimensions of {label}")
    if not 1 <= n_dims <= MAX_DIMS:
        raise FormatError(f"{label} has {n_dims} dimensions, but 1 to {MAX_DIMS} are allowed")
    dims = [cursor.number(_U64, f"dimension {axis} of {label}") for axis in range(n_dims)]
    type_id = cursor.number(_U32, f"the type of {label}")
    offset = cursor.number(_U64, f"the offset of {label}")
    fmt = BY_ID.get(type_id)
    if fmt is None:
        known = f" ({REMOVED[type_id]}, withdrawn from the format)" if type_id in REMOVED else ""
        raise UnsupportedError(
            f"{label} is of type {type_id}{known}, which is not known; convert the model again"
        )
    if min(dims) == 0:
        raise FormatError(f"{label} has the shape {dims[::-1]}: a dimension is 0")
    if dims[0] % fmt.block_size:
        raise FormatError(
            f"{label} has rows of {dims[0]} elements, not whole {fmt.name} blocks of {fmt.block_size}"
        )
    return _Row(name, tuple(reversed(dims)), fmt, offset)


def _placed(
    table: list[_Row], data_start: int, alignment: int, file_size: int, part: int
) -> dict[str, TensorInfo]:
    """The tensors at their places in the file: aligned, within it, in table order, and free of overlap."""
    tensors: dict[str, TensorInfo] = {}
    previous_end = data_start
    for row in table:
        label = f"tensor {shown(row.name)}"
        if row.name in tensors:
            raise FormatError(f"{label} appears twice")
        if row.offset % alignment:
            raise FormatError(
                f"{label} has the offset {row.offset}, not a multiple of the alignment {alignment}"
            )
        elements = 1
        for dim in row.shape:
            elements *= dim
        nbytes = row.fmt.nbytes(elements)
        start = data_start + row.offset
        end = checked_range(start, nbytes, file_size, f"{label} of shape {list(row.shape)} ({row.fmt.name})")
        if start < previous_end:
            raise FormatError(
                f"{label} has the offset {row.offset}, but the tensor listed before it ends at "
                f"{previous_end - data_start}: tensors must lie in the order of the table without overlap"
            )
        tensors[row.name] = TensorInfo(row.name, row.shape, row.fmt, start, nbytes, part)
        previous_end = end
    return tensors


def decode_entry(buffer: memoryview, entry: Entry) -> Scalar | list[Scalar]:
    """The value of ``entry`` as Python objects; bytes that are not valid UTF-8 become surrogates."""
    if entry.kind is ValueType.STRING:
        return str(buffer[entry.offset : entry.end], "utf-8", "surrogateescape")
    if entry.item is ValueType.STRING:
        return [raw.decode("utf-8", "surrogateescape") for raw in string_items(buffer, entry)]
    kind = entry.kind if entry.item is None else entry.item
    values: Sequence[Scalar] = Struct(f"<{entry.count}{LAYOUTS[kind].format[1:]}").unpack_from(
        buffer, entry.offset
    )
    if kind is ValueType.BOOL:
        values = [value != 0 for value in values]
    return list(values) if entry.kind is ValueType.ARRAY else values[0]


def string_items(buffer: memoryview, entry: Entry) -> list[bytes]:
    """The strings of an array as bytes. Their lengths were checked with the header, and are again here."""
    region = bytes(buffer[entry.offset : entry.end])
    unpack = _U64.unpack_from
    items: list[bytes] = []
    position = 0
    try:
        for _ in range(entry.count):
            start = position + 8
            position = start + unpack(region, position)[0]
            items.append(region[start:position])
    except (struct.error, OverflowError):
        position = -1
    if position != len(region):
        raise FormatError("the strings of a metadata array were changed on disk while in use; open it again")
    return items
