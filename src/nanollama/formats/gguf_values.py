"""The metadata value types of GGUF: a type number goes in, how its values are packed comes out.

All numbers are little-endian (GGUF specification, ``enum gguf_metadata_value_type``).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct


class ValueType(IntEnum):
    """The type number in front of each metadata value and in front of each array's items."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


CODES: dict[ValueType, str] = {
    ValueType.UINT8: "B",
    ValueType.INT8: "b",
    ValueType.UINT16: "H",
    ValueType.INT16: "h",
    ValueType.UINT32: "I",
    ValueType.INT32: "i",
    ValueType.FLOAT32: "f",
    ValueType.BOOL: "B",
    ValueType.UINT64: "Q",
    ValueType.INT64: "q",
    ValueType.FLOAT64: "d",
}
"""Type of a number -> its letter in ``struct`` and ``array`` (the same there, and of the same size)."""

LAYOUTS: dict[ValueType, Struct] = {kind: Struct("<" + code) for kind, code in CODES.items()}

Scalar = int | float | bool | str | bytes


@dataclass(frozen=True, slots=True)
class Typed:
    """A metadata value with its exact type in the file. ``item`` is the element type where ``kind`` is
    ARRAY."""

    kind: ValueType
    value: "Scalar | Sequence[Scalar]"
    item: ValueType | None = None


REQUIRED_TYPES: dict[str, tuple[ValueType, ValueType | None]] = {
    "general.alignment": (ValueType.UINT32, None),
    "general.architecture": (ValueType.STRING, None),
    "split.no": (ValueType.UINT16, None),
    "split.count": (ValueType.UINT16, None),
    "split.tensors.count": (ValueType.INT32, None),
    "tokenizer.ggml.tokens": (ValueType.ARRAY, ValueType.STRING),
    "tokenizer.ggml.merges": (ValueType.ARRAY, ValueType.STRING),
    "tokenizer.ggml.scores": (ValueType.ARRAY, ValueType.FLOAT32),
    "tokenizer.ggml.token_type": (ValueType.ARRAY, ValueType.INT32),
}
"""Keys whose exact type other engines rely on without asking: with another one the file is malformed."""


def type_name(kind: ValueType, item: ValueType | None) -> str:
    """The type as a message says it."""
    return kind.name if item is None else f"array of {item.name}"
