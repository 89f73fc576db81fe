"""Safetensors files: a path comes in, a table of tensors and read-only views of their bytes go out.

The file is memory mapped and nothing is decoded. Opening checks the rules of the format (huggingface/
safetensors, ``validate``): the header is bounded JSON, every range lies in the data, the tensors fill it
without a hole or an overlap, and each range is as long as its shape and data type say.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from nanollama.errors import FormatError, UnsupportedError
from nanollama.formats.mapped import MappedFile, lookalike
from nanollama.formats.strict_json import Json, parse_object

MAX_HEADER_BYTES = 16 << 20
MAX_TENSORS = 65_536
MAX_DIMS = 8
MAX_NAME_CHARS = 1024
MAX_ELEMENTS = 1 << 62  # a product of dimensions that no file can hold is refused before it is multiplied out

DTYPE_BYTES: Mapping[str, int] = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
}
"""Data type -> bytes of an element."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of the table. The last dimension is contiguous; ``offset`` is from the file's start."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class SafetensorsFile:
    """An open safetensors file. ``tensors`` is in the order of their data, ``metadata`` is the file's own.

    Raises:
        ModelNotFoundError: there is no such file.
        FormatError: it breaks a rule of the format.
        UnsupportedError: a tensor is of a data type that is not read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file = MappedFile(self.path, "safetensors file")
        try:
            self.tensors, self.metadata = _table(self._file.view)
        except (FormatError, UnsupportedError) as error:
            self.close()
            raise type(error)(f"{self.path.name}: {error}") from None
        except BaseException:
            self.close()
            raise

    def data(self, name: str) -> memoryview:
        """The bytes of a tensor: a read-only view of the map, nothing is copied.

        FormatError if there is no such tensor, or if the file has become shorter since it was opened.
        """
        info = self.tensors.get(name)
        if info is None:
            raise FormatError(f"{self.path.name} has no tensor {name!r:.100}, which the model needs")
        return self._file.content()[info.offset : info.offset + info.nbytes]

    def release(self, name: str) -> None:
        """Gives up the memory that reading a tensor took; its bytes stay in the file."""
        info = self.tensors[name]
        self._file.release(info.offset, info.nbytes)

    def close(self) -> None:
        """Lets the file go. Views handed out before stay readable; reading more is a ValueError."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _table(view: memoryview) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    header, data_start = _header(view)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FormatError(f"__metadata__ is {metadata!r:.60}, but an object of texts is expected")
    if len(header) > MAX_TENSORS:
        raise FormatError(f"the header lists {len(header)} tensors, but at most {MAX_TENSORS} are read")
    infos = [_info(name, entry, data_start) for name, entry in header.items()]
    infos.sort(key=lambda info: (info.offset, info.nbytes))
    end = data_start
    for info in infos:
        if info.offset != end:
            what = "overlaps the one before" if info.offset < end else "leaves a hole before it"
            raise FormatError(
                f"the tensor {info.name!r:.100} begins at byte {info.offset - data_start} of the data and "
                f"{what}, which ends at {end - data_start}; the file is damaged"
            )
        end += info.nbytes
    if end != len(view):
        raise FormatError(
            f"the tensors end at byte {end}, but the file has {len(view)}: it is cut short or has something "
            "appended; fetch it again"
        )
    return {info.name: info for info in infos}, metadata


def _header(view: memoryview) -> tuple[Json, int]:
    """The header as it stands in the file, and where the data begins."""
    start = bytes(view[:32])
    size = int.from_bytes(start[:8], "little")
    if len(start) < 8 or start[8:9] != b"{":
        # The length of a header that is within the bound never looks like one of these.
        if meaning := lookalike(start):
            raise FormatError(f"this is not a safetensors file, it looks like {meaning}")
        raise FormatError("this is not a safetensors file: no header follows its first 8 bytes")
    if size > MAX_HEADER_BYTES:
        raise FormatError(f"the header claims {size} bytes, but at most {MAX_HEADER_BYTES} are read")
    if 8 + size > len(view):
        raise FormatError(
            f"the header claims {size} bytes, but the file has {len(view)}: it is cut short; fetch it again"
        )
    return parse_object(bytes(view[8 : 8 + size]), "the header"), 8 + size


def _info(name: str, entry: object, data_start: int) -> TensorInfo:
    """One entry, checked in itself: its range is as long as its shape and data type say."""
    where = f"the tensor {name!r:.100}"
    if not 0 < len(name) <= MAX_NAME_CHARS:
        raise FormatError(f"{where} has a name of {len(name)} characters; expected 1 to {MAX_NAME_CHARS}")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise FormatError(
            f"{where} is described by {entry!r:.100}; expected exactly dtype, shape and data_offsets"
        )
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise UnsupportedError(
            f"{where} is of data type {dtype!r:.40}, which is not read; readable are {', '.join(DTYPE_BYTES)}"
        )
    if not _are_sizes(shape) or len(shape) > MAX_DIMS:
        raise FormatError(f"{where} has shape {shape!r:.80}; expected at most {MAX_DIMS} whole numbers")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise FormatError(f"{where} has data_offsets {offsets!r:.80}; expected a begin and an end")
    count = _product(shape, where)
    nbytes = offsets[1] - offsets[0]
    if nbytes != count * DTYPE_BYTES[dtype]:
        raise FormatError(
            f"{where} of shape {shape} and type {dtype} needs {count * DTYPE_BYTES[dtype]} bytes, "
            f"but its data_offsets give it {nbytes}"
        )
    return TensorInfo(name, dtype, tuple(shape), data_start + offsets[0], nbytes)


def _are_sizes(values: object) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _product(shape: list[int], where: str) -> int:
    count = 1
    for size in shape:
        count *= size
        if count > MAX_ELEMENTS or size > MAX_ELEMENTS:
            raise FormatError(f"{where} has shape {shape!r:.80}, more elements than any file can hold")
    return count
