"""Safetensors files: what the official library writes is read, what its rules forbid is refused with one
sentence, and no accepted file has a view outside its data.
"""

import json
import os
import random
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from nanollama.errors import FormatError, ModelNotFoundError, NanollamaError, UnsupportedError
from nanollama.formats.safetensors import DTYPE_BYTES, MAX_HEADER_BYTES, MAX_TENSORS, SafetensorsFile

TORCH_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


def entry(
    begin: Any = 0, end: Any = 16, shape: Any = (4,), dtype: Any = "F32", **more: object
) -> dict[str, Any]:
    shape = list(shape) if isinstance(shape, tuple) else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end], **more}


def raw(header: bytes, data: bytes = bytes(16), size: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if size is None else size) + header + data


def of(table: dict[str, Any], data: int = 16) -> bytes:
    return raw(json.dumps(table).encode(), bytes(data))


def opened(tmp_path: Path, content: bytes) -> SafetensorsFile:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    return SafetensorsFile(path)


def test_every_type_reads_back_the_bytes_that_the_library_wrote(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randint(0, 2, (3, 5), generator=generator).to(kind) for name, kind in TORCH_TYPES.items()
    }
    tensors |= {"scalar": torch.tensor(2.5), "empty": torch.empty(0, 7), "empty too": torch.empty(0)}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with SafetensorsFile(tmp_path / "model.safetensors") as file:
        assert set(file.tensors) == set(tensors)
        assert file.metadata == {"format": "pt"}
        for name, tensor in tensors.items():
            info = file.tensors[name]
            assert info.shape == tuple(tensor.shape)
            assert info.nbytes == tensor.nbytes
            assert name not in TORCH_TYPES or info.dtype == name
            assert bytes(file.data(name)) == tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
            file.release(name)
            assert len(file.data(name)) == tensor.nbytes
    assert set(TORCH_TYPES) == set(DTYPE_BYTES)


def test_views_outlive_the_file_and_can_not_be_written(tmp_path: Path) -> None:
    file = opened(tmp_path, of({"t": entry()}))
    view = file.data("t")
    file.close()
    assert bytes(view) == bytes(16)
    assert view.readonly
    with pytest.raises(ValueError, match="closed"):
        file.data("t")


def test_trailing_spaces_of_the_header_are_padding(tmp_path: Path) -> None:
    header = json.dumps({"t": entry()}).encode() + b"   "
    assert list(opened(tmp_path, raw(header)).tensors) == ["t"]


def test_a_file_that_shrinks_is_an_error_and_not_a_crash(tmp_path: Path) -> None:
    file = opened(tmp_path, of({"t": entry(0, 1 << 20, (1 << 18,))}, 1 << 20))
    os.truncate(file.path, 4096)
    with pytest.raises(FormatError, match="cut it short"):
        file.data("t")


def test_an_unknown_tensor_is_named(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="no tensor 'u'"):
        opened(tmp_path, of({"t": entry()})).data("u")


MALFORMED: dict[str, tuple[bytes, str]] = {
    "an empty file": (b"", "is empty"),
    "seven bytes": (bytes(7), "not a safetensors file"),
    "only a length": (struct.pack("<Q", 2), "not a safetensors file"),
    "a header past the end": (raw(b'{"a":1}', size=4096), "cut short"),
    "a header of 2^63 bytes": (raw(b'{"a":1}', size=2**63), "at most"),
    "a header of 2^64-1 bytes": (raw(b'{"a":1}', size=2**64 - 1), "at most"),
    "a header one byte over the bound": (raw(b'{"a":1}', size=MAX_HEADER_BYTES + 1), "at most"),
    "a header that begins with a space": (raw(b' {"t":1}'), "not a safetensors file"),
    "a list": (raw(b"[]"), "not a safetensors file"),
    "no JSON": (raw(b"{nothing}"), "not valid JSON"),
    "a header cut in the middle": (raw(b'{"t":{"dtype":"F32","sh'), "not valid JSON"),
    "bytes that are no UTF-8": (raw(b'{"\xff":1}'), "not valid JSON"),
    "text after the header": (raw(b'{"a":1}x'), "not valid JSON"),
    "deep nesting": (raw(b'{"a":' + b"[" * 100_000), "nested too deeply"),
    "a tensor twice": (
        raw(b'{"t":%b,"t":%b}' % ((json.dumps(entry()).encode(),) * 2)),
        "the key 't' occurs twice",
    ),
    "a key of an entry twice": (
        raw(b'{"t":{"dtype":"F32","dtype":"F32","shape":[4],"data_offsets":[0,16]}}'),
        "'dtype' occurs twice",
    ),
    "a number without end": (raw(b'{"t":{"dtype":"F32","shape":[' + b"9" * 5000 + b"]}}"), "5000 digits"),
    "NaN": (raw(b'{"t":{"dtype":"F32","shape":[NaN],"data_offsets":[0,16]}}'), "NaN is no number"),
    "no entry object": (of({"t": 1}), "described by 1"),
    "no dtype": (of({"t": {"shape": [4], "data_offsets": [0, 16]}}), "expected exactly"),
    "no shape": (of({"t": {"dtype": "F32", "data_offsets": [0, 16]}}), "expected exactly"),
    "no offsets": (of({"t": {"dtype": "F32", "shape": [4]}}), "expected exactly"),
    "a further key": (of({"t": entry(layout="x")}), "expected exactly"),
    "a nameless tensor": (of({"": entry()}), "name of 0 characters"),
    "an endless name": (of({"n" * 5000: entry()}), "name of 5000 characters"),
    "a negative dimension": (of({"t": entry(shape=[-4])}), "has shape"),
    "two negative dimensions": (of({"t": entry(shape=[-2, -2])}), "has shape"),
    "a float dimension": (of({"t": entry(shape=[4.0])}), "has shape"),
    "a boolean dimension": (of({"t": entry(0, 4, shape=[True])}), "has shape"),
    "a text dimension": (of({"t": entry(shape=["4"])}), "has shape"),
    "a shape that is no list": (of({"t": entry(shape=4)}), "has shape"),
    "nine dimensions": (of({"t": entry(0, 4, shape=[1] * 9)}), "has shape"),
    "dimensions that overflow 64 bits to 4": (of({"t": entry(shape=[2**32, 2**32, 4])}), "any file can hold"),
    "dimensions of which one is zero": (of({"t": entry(0, 0, shape=[2**63, 0])}, 0), "any file can hold"),
    "a shape that needs more": (of({"t": entry(shape=(5,))}), "needs 20 bytes"),
    "a shape that needs less": (of({"t": entry(shape=(3,))}), "needs 12 bytes"),
    "a half element": (of({"t": entry(0, 15, shape=(4,))}, 15), "needs 16 bytes"),
    "offsets the wrong way round": (of({"t": entry(16, 0)}), "data_offsets"),
    "a negative offset": (of({"t": entry(-16, 0)}), "data_offsets"),
    "a float offset": (of({"t": entry(0, 16.0)}), "data_offsets"),
    "three offsets": (of({"t": entry() | {"data_offsets": [0, 8, 16]}}), "data_offsets"),
    "offsets that are no list": (of({"t": entry() | {"data_offsets": "0-16"}}), "data_offsets"),
    "an end past the file": (of({"t": entry(0, 32, (8,))}), "cut short"),
    "an end of 2^62": (of({"t": entry(0, 2**62, (2**60,))}), "cut short"),
    "a begin that is not zero": (of({"t": entry(4, 20)}, 20), "hole"),
    "a hole": (of({"a": entry(0, 16), "b": entry(20, 36)}, 36), "hole"),
    "an overlap": (of({"a": entry(0, 16), "b": entry(8, 24)}, 24), "overlaps"),
    "two on the same bytes": (of({"a": entry(), "b": entry()}), "overlaps"),
    "an empty one inside another": (of({"a": entry(), "b": entry(8, 8, (0,))}), "overlaps"),
    "bytes appended": (of({"t": entry()}, 24), "appended"),
    "data without a tensor": (of({}), "appended"),
    "one byte missing": (of({"t": entry()}, 15), "cut short"),
    "metadata that is no object": (of({"__metadata__": 1, "t": entry()}), "__metadata__"),
    "metadata of numbers": (of({"__metadata__": {"a": 1}, "t": entry()}), "__metadata__"),
    "too many tensors": (of({str(i): 0 for i in range(MAX_TENSORS + 1)}), "at most"),
    "a GGUF file": (b"GGUF" + bytes(60), "looks like a GGUF file"),
    "a pickle": (b"\x80\x02}q\x00." + bytes(40), "pickle, which is never loaded"),
    "a zip archive": (b"PK\x03\x04" + bytes(40), "zip archive"),
    "a git-lfs pointer": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "a web page": (b"<!DOCTYPE html><html></html>", "HTML"),
    "zeros": (bytes(4096), "zeros"),
}  # fmt: skip


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_file_is_refused_with_one_sentence(tmp_path: Path, case: str) -> None:
    content, message = MALFORMED[case]
    with pytest.raises(FormatError, match=message) as caught:
        opened(tmp_path, content)
    said = str(caught.value)
    assert said.startswith("model.safetensors")
    assert len(said) < 400
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("dtype", ["F31", "F4", "C64", "f32", "", None, 7, ["F32"]])
def test_an_unknown_data_type_is_refused_by_name(tmp_path: Path, dtype: object) -> None:
    with pytest.raises(UnsupportedError, match="data type"):
        opened(tmp_path, of({"t": entry(dtype=dtype)}))


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="does not exist"):
        SafetensorsFile(tmp_path / "no.safetensors")
    with pytest.raises(FormatError, match="is a folder"):
        SafetensorsFile(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(FormatError, match="not a regular file"):
        SafetensorsFile(tmp_path / "fifo")


def test_a_table_at_the_limit_is_read(tmp_path: Path) -> None:
    table = {f"t{i}": entry(i, i + 1, (1,), "U8") for i in range(MAX_TENSORS)}
    assert len(opened(tmp_path, of(table, MAX_TENSORS)).tensors) == MAX_TENSORS


def test_damaged_files_are_read_or_refused_as_the_library_does(tmp_path: Path) -> None:
    """Whatever the damage: no other exception, and no view outside the data."""
    table = {"__metadata__": {"format": "pt"}, "a.weight": entry(), "b": entry(16, 24, (2, 2), "F16")}
    whole = of(table, 24)
    chance = random.Random(5)
    path = tmp_path / "model.safetensors"
    accepted = 0
    for _ in range(1000):
        content = bytearray(whole)
        for _ in range(chance.choice((1, 1, 1, 2, 4))):
            place = chance.randrange(len(content)) if chance.random() < 0.7 else chance.randrange(8)
            match chance.randrange(4):
                case 0:
                    content[place] ^= 1 << chance.randrange(8)
                case 1:
                    del content[place : place + chance.randrange(1, 9)]
                case 2:
                    content[place:place] = chance.choice((b"0", b"-", b"[", b"{", b'"', b"\0" * 8))
                case _:
                    content[place] = chance.choice(b'0123456789[]{},:"')
            if len(content) < 9:
                break
        path.write_bytes(content)
        try:
            with SafetensorsFile(path) as file:
                assert sum(len(file.data(name)) for name in file.tensors) <= len(content) - 8
        except NanollamaError:
            continue
        accepted += 1
        try:
            with safe_open(path, "np") as theirs:
                assert set(theirs.keys()) == set(file.tensors)
        except SafetensorError as error:
            pytest.fail(f"the library refuses {bytes(content)!r}: {error}")
    assert accepted > 15


def test_every_prefix_of_a_file_is_refused(tmp_path: Path) -> None:
    whole = of({"a": entry()})
    path = tmp_path / "model.safetensors"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(FormatError):
            SafetensorsFile(path)
