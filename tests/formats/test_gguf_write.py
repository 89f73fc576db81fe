"""Writing GGUF files: round trips, streaming, types, and that a failure leaves nothing behind."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest

from nanollama.errors import NanollamaError, UsageError
from nanollama.formats.gguf import GGUFFile
from nanollama.formats.gguf_values import Typed, ValueType
from nanollama.formats.gguf_write import TensorSource, Value, inferred, write_gguf
from nanollama.quant.formats import FORMATS

F32 = FORMATS["F32"]


def rewrite(source: Path, target: Path) -> None:
    with GGUFFile(source) as file:
        metadata: dict[str, Value] = {key: file.typed(key) for key in file.metadata}
        tensors = ((t.name, t.shape, t.fmt, file.data(t.name)) for t in file.tensors.values())
        write_gguf(target, metadata, tensors)


def test_a_real_file_is_rewritten_byte_for_byte(stories_path: Path, tmp_path: Path) -> None:
    rewrite(stories_path, tmp_path / "copy.gguf")
    assert (tmp_path / "copy.gguf").read_bytes() == stories_path.read_bytes()


@pytest.mark.model
def test_the_default_model_is_rewritten_byte_for_byte(smollm2_path: Path, tmp_path: Path) -> None:
    rewrite(smollm2_path, tmp_path / "copy.gguf")
    assert (tmp_path / "copy.gguf").read_bytes() == smollm2_path.read_bytes()


def test_the_gguf_package_reads_what_is_written(tmp_path: Path) -> None:
    weights = np.arange(64, dtype=np.float32).reshape(2, 32)
    packed = gguf.quants.quantize(weights, gguf.GGMLQuantizationType.Q8_0)
    metadata: dict[str, Value] = {
        "general.architecture": "llama",
        "general.alignment": 64,
        "pi": 3.25,
        "flag": True,
        "tokens": ["a", "", "▁b"],
        "small": Typed(ValueType.UINT8, 3),
    }
    tensors: list[TensorSource] = [
        ("a", (2, 32), FORMATS["Q8_0"], packed.tobytes()),
        ("b", (2, 32), F32, weights.tobytes()),
    ]
    write_gguf(tmp_path / "m.gguf", metadata, tensors)
    peer = gguf.GGUFReader(tmp_path / "m.gguf")
    assert {k: f.contents() for k, f in peer.fields.items() if not k.startswith("GGUF.")} == {
        **metadata,
        "small": 3,
    }
    assert peer.alignment == 64
    np.testing.assert_array_equal(peer.tensors[0].data, packed)
    np.testing.assert_array_equal(peer.tensors[1].data, weights)
    assert all(tensor.data_offset % 64 == 0 for tensor in peer.tensors)


def test_bytes_are_asked_for_one_tensor_after_the_other(tmp_path: Path) -> None:
    asked: list[str] = []

    def pieces() -> Iterator[bytes]:
        asked.append("pieces")
        yield bytes([1]) * 4
        yield bytes([2]) * 4

    def whole() -> bytearray:
        asked.append("whole")
        return bytearray([3] * 8)

    tensors: list[TensorSource] = [("a", (2,), F32, pieces), ("b", (2,), F32, whole)]
    write_gguf(tmp_path / "m.gguf", {}, tensors)
    assert asked == ["pieces", "whole"]
    with GGUFFile(tmp_path / "m.gguf") as file:
        assert bytes(file.data("a")) == bytes([1, 1, 1, 1, 2, 2, 2, 2])
        assert bytes(file.data("b")) == bytes([3] * 8)


@pytest.mark.parametrize(
    ("value", "kind", "item"),
    [
        (True, ValueType.BOOL, None),
        (0, ValueType.UINT32, None),
        (2**32 - 1, ValueType.UINT32, None),
        (2**32, ValueType.UINT64, None),
        (-1, ValueType.INT32, None),
        (-(2**31) - 1, ValueType.INT64, None),
        (1.0, ValueType.FLOAT32, None),
        ("s", ValueType.STRING, None),
        (b"s", ValueType.STRING, None),
        ([1, -1], ValueType.ARRAY, ValueType.INT32),
        ([1, 2**31], ValueType.ARRAY, ValueType.INT64),
        ((0.5,), ValueType.ARRAY, ValueType.FLOAT32),
        ([True], ValueType.ARRAY, ValueType.BOOL),
        (["a"], ValueType.ARRAY, ValueType.STRING),
        ([b"a"], ValueType.ARRAY, ValueType.STRING),
    ],
)
def test_a_plain_value_gets_the_usual_type(value: Value, kind: ValueType, item: ValueType | None) -> None:
    assert inferred("k", value) == Typed(kind, value, item)  # type: ignore[arg-type]


ONE = bytes(4)


@pytest.mark.parametrize(
    ("metadata", "tensors", "message"),
    [
        ({"k": []}, [], r"'k' has no evident type: \[\]"),
        ({"k": [1, 2.0]}, [], "'k' has no evident type"),
        ({"k": None}, [], "'k' has no evident type: None"),
        ({"k": Typed(ValueType.UINT8, 256)}, [], "'k' cannot be 256 of type UINT8"),
        ({"k": Typed(ValueType.UINT32, -1)}, [], "'k' cannot be -1 of type UINT32"),
        ({"k": Typed(ValueType.UINT32, "x")}, [], "'k' cannot be 'x' of type UINT32"),
        ({"k": Typed(ValueType.STRING, 5)}, [], "'k' cannot be 5 of type STRING"),
        ({"k": 1e300}, [], r"'k' cannot be 1e\+300 of type FLOAT32"),
        ({"k": 2**64}, [], "'k' cannot be 18446744073709551616"),
        ({"k": Typed(ValueType.ARRAY, [1])}, [], "'k' cannot be .* needs the type of its items"),
        ({"k": Typed(ValueType.ARRAY, [300], ValueType.UINT8)}, [], "'k' cannot be"),
        ({"k": Typed(ValueType.ARRAY, [[1]], ValueType.ARRAY)}, [], "'k' cannot be"),
        ({"k": "\ud800"}, [], "'k' cannot be"),
        ({"": 1}, [], "metadata key '' has 0 bytes"),
        ({"\udcff": 1}, [], "is not text that UTF-8 can hold"),
        ({"general.alignment": 3}, [], "'general.alignment' is 3"),
        (
            {"general.alignment": Typed(ValueType.UINT64, 32)},
            [],
            "'general.alignment' must be of type UINT32",
        ),
        ({}, [("t", (1,), F32, ONE), ("t", (1,), F32, ONE)], "tensor 't' appears twice"),
        ({}, [("t", (), F32, ONE)], r"tensor 't' has the shape \[\]"),
        ({}, [("t", (1, 0), F32, b"")], r"tensor 't' has the shape \[1, 0\]"),
        ({}, [("t", (1,) * 5, F32, ONE)], "needs 1 to 4 dimensions"),
        ({}, [("t", (33,), FORMATS["Q8_0"], ONE)], "rows of a multiple of 32"),
        ({}, [("t", (2,), F32, ONE)], "tensor 't' came with 4 bytes, but its shape and format need 8"),
        ({}, [("t", (1,), F32, lambda: [ONE, ONE])], "tensor 't' came with 8 bytes"),
    ],
)
def test_what_cannot_be_written_is_named_and_leaves_no_file(
    tmp_path: Path, metadata: dict[str, Value], tensors: list[TensorSource], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        write_gguf(tmp_path / "m.gguf", metadata, tensors)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_half_way_leaves_the_old_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, {"k": "old"}, [])

    def fails() -> bytes:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_gguf(path, {"k": "new"}, [("t", (1,), F32, ONE), ("u", (1,), F32, fails)])
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.gguf"]
    with GGUFFile(path) as file:
        assert file.metadata["k"] == "old"


def test_a_full_disk_or_a_missing_folder_is_a_sentence(tmp_path: Path) -> None:
    def full() -> bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(
        NanollamaError, match=r"m\.gguf could not be written \(No space left on device\): check"
    ):
        write_gguf(tmp_path / "m.gguf", {}, [("t", (1,), F32, full)])
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(NanollamaError, match=r"could not be written \(No such file or directory\)"):
        write_gguf(tmp_path / "no/m.gguf", {}, [])


def test_what_is_no_regular_file_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "device")
    (tmp_path / "link").symlink_to(tmp_path / "device")
    for name in ("folder", "device", "link"):
        with pytest.raises(UsageError, match=f"{name} is there and no regular file"):
            write_gguf(tmp_path / name, {}, [])
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["device", "folder", "link"]
    assert (tmp_path / "device").is_fifo()
    assert (tmp_path / "folder").is_dir()


def test_the_file_has_the_usual_permissions(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", {}, [])
    (tmp_path / "plain").touch()
    assert os.stat(tmp_path / "m.gguf").st_mode == os.stat(tmp_path / "plain").st_mode
