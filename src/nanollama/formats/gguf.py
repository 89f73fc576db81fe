"""GGUF model files: a path comes in, typed metadata and read-only views of the packed tensors go out.

The file is memory mapped. Opening checks the whole header (``gguf_header``), so that every view lies within
the file; arrays of metadata are decoded when they are first asked for. A model split by llama.cpp's
``gguf-split`` is opened from any of its parts.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, overload

from nanollama.errors import FormatError, ModelNotFoundError, UnsupportedError
from nanollama.formats.gguf_header import Header, TensorInfo, decode_entry, parse_header, shown
from nanollama.formats.gguf_values import Typed, ValueType, type_name
from nanollama.formats.mapped import MappedFile, lookalike

__all__ = ["GGUFFile", "TensorInfo"]

_SPLIT_NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)

K = TypeVar("K", int, float, str, bool)
D = TypeVar("D")


class _Required:
    """The default of a key that must be there."""


_REQUIRED = _Required()


class _Part(MappedFile):
    """One mapped file and its checked header."""

    def __init__(self, path: Path, index: int) -> None:
        super().__init__(path, "GGUF file")
        try:
            self.header = _checked_header(self.view, index)
        except (FormatError, UnsupportedError) as error:
            self.close()
            raise type(error)(f"{path.name}: {error}") from None


def _checked_header(view: memoryview, index: int) -> Header:
    start = bytes(view[:32])
    if start[:4] != b"GGUF":
        if meaning := lookalike(start):
            raise FormatError(f"this is not a GGUF file, it looks like {meaning}")
        raise FormatError(f"this is not a GGUF file: it starts with {start[:4]!r} instead of b'GGUF'")
    return parse_header(view, index)


class _LazyMetadata(Mapping[str, Any]):
    """Key -> value as Python objects, each decoded when first asked for and then kept."""

    def __init__(self, part: _Part) -> None:
        self._part = part
        self._values: dict[str, Any] = {}

    def __getitem__(self, key: str) -> Any:
        if key not in self._values:
            entry = self._part.header.entries[key]
            self._values[key] = decode_entry(self._part.content(), entry)
        return self._values[key]

    def __contains__(self, key: object) -> bool:
        return key in self._part.header.entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._part.header.entries)

    def __len__(self) -> int:
        return len(self._part.header.entries)


class GGUFFile:
    """An open GGUF model: one file, or all the files of a split model.

    ``path`` is the path it was opened by. ``metadata``, ``version`` and ``alignment`` are those of the first
    part; ``tensors`` holds the tensors of all parts in file order.

    Metadata values are decoded when first asked for: numbers are int, float or bool, text is str, arrays are
    lists. Text that is not valid UTF-8 (pieces of a vocabulary may hold any bytes) is decoded with
    ``surrogateescape``, which loses nothing.

    Raises:
        ModelNotFoundError: there is no such file.
        FormatError: a file is malformed.
        UnsupportedError: a file is well formed, but of a kind that is not read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._parts: list[_Part] = []
        self.tensors: dict[str, TensorInfo] = {}
        try:
            self._open_parts()
            header = self._parts[0].header
            self.version: int = header.version
            self.alignment: int = header.alignment
            self.metadata: Mapping[str, Any] = _LazyMetadata(self._parts[0])
            self._merge_tensors()
        except BaseException:
            self.close()
            raise

    def _open_parts(self) -> None:
        match = _SPLIT_NAME.fullmatch(self.path.name)
        count = int(match["count"]) if match else 1
        if match and not 1 <= int(match["number"]) <= count:
            raise FormatError(f"{self.path.name} is named as part {int(match['number'])} of {count}")
        for index in range(count):
            path = self.path
            if match:
                path = path.with_name(f"{match['stem']}-{index + 1:05d}-of-{count:05d}.gguf")
            try:
                part = _Part(path, index)
            except ModelNotFoundError:
                if path == self.path:
                    raise
                raise FormatError(
                    f"{path.name} is missing, part {index + 1} of {count}; put all parts in one folder"
                ) from None
            self._parts.append(part)
            _check_place(part, index, count)

    def _merge_tensors(self) -> None:
        for part in self._parts:
            for name, tensor in part.header.tensors.items():
                if name in self.tensors:
                    other = self._parts[self.tensors[name].part].path.name
                    raise FormatError(f"{part.path.name}: tensor {shown(name)} is also in {other}")
                self.tensors[name] = tensor
        expected = self.get("split.tensors.count", int, None)
        if expected is not None and expected != len(self.tensors):
            raise FormatError(
                f"{self.path.name}: metadata key 'split.tensors.count' is {expected}, but there are "
                f"{len(self.tensors)} tensors; the parts are not of one model"
            )

    @property
    def files(self) -> tuple[Path, ...]:
        """The file, or all parts of a split model in their order."""
        return tuple(part.path for part in self._parts)

    def close(self) -> None:
        """Let the files go. Views handed out before stay readable; reading anything more is a ValueError."""
        for part in self._parts:
            part.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def data(self, name: str) -> memoryview:
        """The packed bytes of a tensor: a read-only view of the map, nothing is copied.

        Raises:
            FormatError: there is no such tensor, or the file has become shorter since it was opened.
        """
        tensor = self.tensors.get(name)
        if tensor is None:
            raise FormatError(f"{self.path.name} has no tensor {shown(name)}, which the model needs")
        return self._parts[tensor.part].content()[tensor.offset : tensor.offset + tensor.nbytes]

    def release(self, name: str) -> None:
        """Give up the memory that reading a tensor took; its bytes stay in the file."""
        tensor = self.tensors[name]
        self._parts[tensor.part].release(tensor.offset, tensor.nbytes)

    @overload
    def get(self, key: str, kind: type[K]) -> K: ...
    @overload
    def get(self, key: str, kind: type[K], default: D) -> K | D: ...
    def get(self, key: str, kind: type[Any], default: object = _REQUIRED) -> object:
        """The value of ``key`` as ``kind`` (int, float, str or bool), or ``default`` if there is no such key.

        An int also does where a float is asked for.

        Raises:
            FormatError: the value is of another type, or the key is missing and there is no default.
        """
        if key not in self.metadata:
            if default is _REQUIRED:
                raise FormatError(f"{self.path.name} has no metadata key {shown(key)}, which the model needs")
            return default
        value = self.metadata[key]
        if kind is float and type(value) is int:
            return float(value)
        if type(value) is not kind:
            entry = self._parts[0].header.entries[key]
            raise FormatError(
                f"{self.path.name}: metadata key {shown(key)} is {shown(value)} of type "
                f"{type_name(entry.kind, entry.item)}, but {kind.__name__} was expected"
            )
        return value

    def array_length(self, key: str) -> int | None:
        """How many items the array ``key`` has, without decoding them; ``None`` if it is no array."""
        entry = self._parts[0].header.entries[key]
        return entry.count if entry.kind is ValueType.ARRAY else None

    def typed(self, key: str) -> Typed:
        """The value of ``key`` with its exact type, as ``write_gguf`` takes it.

        Raises:
            KeyError: there is no such key.
        """
        entry = self._parts[0].header.entries[key]
        return Typed(entry.kind, self.metadata[key], entry.item)


def _check_place(part: _Part, index: int, count: int) -> None:
    """A part must say of itself what its file name says: which part it is, and of how many."""
    metadata = _LazyMetadata(part)
    said_index = metadata.get("split.no", 0)
    # gguf-split leaves a count of 0 in a file that it merged.
    said_count = metadata.get("split.count", 0) or 1
    if (said_index, said_count) != (index, count):
        raise FormatError(
            f"{part.path.name} is part {index + 1} of {count} by its name, "
            f"but {said_index + 1} of {said_count} by its metadata keys 'split.no' and "
            "'split.count'; don't rename split files or mix models"
        )
