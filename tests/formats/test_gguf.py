"""Reading well-formed GGUF files: values, views, split models, real files, and files that change."""

import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from nanollama.errors import FormatError, ModelNotFoundError
from nanollama.formats.gguf import GGUFFile
from nanollama.formats.gguf_values import Typed, ValueType
from nanollama.formats.gguf_write import TensorSource, Value, write_gguf
from nanollama.quant.formats import FORMATS

F32 = FORMATS["F32"]


def weights(name: str, count: int = 4, first: float = 0.0) -> TensorSource:
    return (name, (count,), F32, np.arange(first, first + count, dtype=np.float32).tobytes())


def test_every_kind_of_value_comes_back_as_python_objects(tmp_path: Path) -> None:
    numbers: list[tuple[ValueType, Any]] = [
        (ValueType.UINT8, 255),
        (ValueType.INT8, -128),
        (ValueType.UINT16, 65_535),
        (ValueType.INT16, -32_768),
        (ValueType.UINT32, 2**32 - 1),
        (ValueType.INT32, -(2**31)),
        (ValueType.UINT64, 2**64 - 1),
        (ValueType.INT64, -(2**63)),
        (ValueType.FLOAT32, 0.5),
        (ValueType.FLOAT64, 0.1),
        (ValueType.BOOL, True),
        (ValueType.STRING, "héllo\n\0 ✓"),
    ]
    metadata: dict[str, Value] = {kind.name: Typed(kind, value) for kind, value in numbers}
    for kind, value in numbers:
        metadata[kind.name + "[]"] = Typed(ValueType.ARRAY, [value, value], kind)
        metadata[kind.name + "[0]"] = Typed(ValueType.ARRAY, [], kind)
    write_gguf(tmp_path / "m.gguf", metadata, [])
    with GGUFFile(tmp_path / "m.gguf") as file:
        assert list(file.metadata) == list(metadata)
        for kind, value in numbers:
            assert file.metadata[kind.name] == value
            assert type(file.metadata[kind.name]) is type(value)
            assert file.metadata[kind.name + "[]"] == [value, value]
            assert file.metadata[kind.name + "[0]"] == []
        assert len(file.metadata) == len(metadata)
        assert "missing" not in file.metadata
        assert file.metadata.get("missing") is None


def test_text_that_is_not_utf8_keeps_its_bytes(tmp_path: Path) -> None:
    pieces = [b"\xff", b"ok", b"\xe2\x96", "▁".encode()]
    metadata: dict[str, Value] = {
        "tokenizer.ggml.tokens": Typed(ValueType.ARRAY, pieces, ValueType.STRING),
        "name": b"caf\xe9",
    }
    write_gguf(tmp_path / "m.gguf", metadata, [])
    with GGUFFile(tmp_path / "m.gguf") as file:
        assert file.metadata["tokenizer.ggml.tokens"] == ["\udcff", "ok", "\udce2\udc96", "▁"]
        assert file.get("name", str).encode("utf-8", "surrogateescape") == b"caf\xe9"


def test_typed_access_gives_the_value_the_default_or_an_error_with_key_and_value(tmp_path: Path) -> None:
    metadata: dict[str, Value] = {"i": 7, "f": 0.5, "s": "text", "b": True, "a": [1, 2], "long": "x" * 1000}
    write_gguf(tmp_path / "m.gguf", metadata, [])
    with GGUFFile(tmp_path / "m.gguf") as file:
        assert file.get("i", int) == 7
        assert file.get("i", float) == 7.0
        assert file.get("f", float) == 0.5
        assert file.get("s", str) == "text"
        assert file.get("b", bool) is True
        assert file.get("none", int, None) is None
        assert file.get("none", str, "default") == "default"
        with pytest.raises(FormatError, match=r"m\.gguf has no metadata key 'none'"):
            file.get("none", int)
        wrong: list[tuple[str, type[Any], str]] = [
            ("s", int, "'s' is 'text' of type STRING, but int was expected"),
            ("b", int, "'b' is True of type BOOL, but int"),
            ("f", int, "'f' is 0.5 of type FLOAT32, but int"),
            ("i", bool, "'i' is 7 of type UINT32, but bool"),
            ("i", str, "'i' is 7 of type UINT32, but str"),
            ("a", int, r"'a' is \[1, 2\] of type array of INT32, but int"),
            ("long", int, r"'long' is 'x+\.\.\.x+' of type STRING"),
        ]
        for key, kind, message in wrong:
            with pytest.raises(FormatError, match=message):
                file.get(key, kind, 3)


def test_a_tensor_is_a_read_only_view_in_numpy_order(tmp_path: Path) -> None:
    stored = np.arange(6, dtype=np.float32).reshape(2, 3)
    tensors: list[TensorSource] = [("a", (2, 3), F32, stored.tobytes()), weights("b", 4, 10)]
    write_gguf(tmp_path / "m.gguf", {}, tensors)
    with GGUFFile(tmp_path / "m.gguf") as file:
        info = file.tensors["a"]
        assert (info.name, info.shape, info.fmt, info.nbytes, info.part) == ("a", (2, 3), F32, 24, 0)
        view = file.data("a")
        assert view.readonly
        np.testing.assert_array_equal(np.frombuffer(view, np.float32).reshape(info.shape), stored)
        assert np.frombuffer(file.data("b"), np.float32).tolist() == [10, 11, 12, 13]
        assert (tmp_path / "m.gguf").read_bytes()[info.offset :][:24] == stored.tobytes()
        with pytest.raises(FormatError, match=r"m\.gguf has no tensor 'c'"):
            file.data("c")


def test_views_stay_readable_after_close_and_nothing_else_does(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", {"k": "v"}, [weights("a")])
    file = GGUFFile(tmp_path / "m.gguf")
    view = file.data("a")
    file.close()
    file.close()
    assert np.frombuffer(view, np.float32).tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="closed"):
        file.data("a")
    with pytest.raises(ValueError, match="closed"):
        file.metadata["k"]


def test_a_file_that_shrinks_while_open_is_an_error_and_not_a_crash(tmp_path: Path) -> None:
    """Reading a mapped page that is gone ends the process with SIGBUS."""
    path = tmp_path / "m.gguf"
    write_gguf(path, {"k": "v"}, [weights("a", 1 << 16)])
    with GGUFFile(path) as file:
        os.truncate(path, 100)
        with pytest.raises(FormatError, match=r"m\.gguf had \d+ bytes when it was opened and has 100 now"):
            file.data("a")
        with pytest.raises(FormatError, match="has 100 now"):
            file.metadata["k"]


def test_a_file_that_grows_or_is_replaced_while_open_keeps_giving_what_was_opened(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, {"k": "old"}, [weights("a")])
    with GGUFFile(path) as file:
        with path.open("ab") as out:
            out.write(bytes(5000))
        assert np.frombuffer(file.data("a"), np.float32).tolist() == [0, 1, 2, 3]
        write_gguf(path, {"k": "new"}, [])
        assert file.metadata["k"] == "old"


def test_strings_rewritten_in_place_while_open_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_gguf(path, {"k": ["abc", "def"]}, [])
    with GGUFFile(path) as file:
        at = path.read_bytes().index(struct.pack("<Q", 3) + b"abc")
        with path.open("r+b") as out:
            out.seek(at)
            out.write(struct.pack("<Q", 2**63))
        with pytest.raises(FormatError, match="changed on disk while in use"):
            file.metadata["k"]


def write_split(folder: Path, **changes: Any) -> list[Path]:
    """A model in three parts as gguf-split writes it; ``changes`` are other values of a part's split keys."""
    paths = [folder / f"m-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    for index, path in enumerate(paths):
        number = changes.get(f"no_{index}", index)
        count = changes.get(f"count_{index}", 3)
        metadata: dict[str, Value] = {
            "split.no": Typed(ValueType.UINT16, number),
            "split.count": Typed(ValueType.UINT16, count),
            "split.tensors.count": Typed(ValueType.INT32, changes.get("tensors", 3)),
        }
        if index == 0:
            metadata |= {"general.architecture": "llama", "name": "split model"}
        write_gguf(path, metadata, [weights(changes.get(f"name_{index}", f"t{index}"), 4, 10 * index)])
    return paths


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_split_model_opens_from_any_of_its_parts(tmp_path: Path, which: int) -> None:
    paths = write_split(tmp_path)
    with GGUFFile(paths[which]) as file:
        assert file.path == paths[which]
        assert file.metadata["name"] == "split model"
        assert [(t.name, t.part) for t in file.tensors.values()] == [("t0", 0), ("t1", 1), ("t2", 2)]
        for index in range(3):
            assert np.frombuffer(file.data(f"t{index}"), np.float32)[0] == 10 * index


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"no_1": 2}, "m-00002-of-00003.gguf is part 2 of 3 by its name, but 3 of 3"),
        ({"count_2": 4}, "m-00003-of-00003.gguf is part 3 of 3 by its name, but 3 of 4"),
        ({"count_0": 1}, "m-00001-of-00003.gguf is part 1 of 3 by its name, but 1 of 1"),
        ({"tensors": 5}, "'split.tensors.count' is 5, but there are 3 tensors"),
        ({"name_2": "t0"}, "m-00003-of-00003.gguf: tensor 't0' is also in m-00001-of-00003.gguf"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    paths = write_split(tmp_path, **changes)
    with pytest.raises(FormatError, match=message):
        GGUFFile(paths[0])


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_missing_part_is_named(tmp_path: Path, missing: int) -> None:
    paths = write_split(tmp_path)
    paths[missing].unlink()
    with pytest.raises(FormatError, match=f"{paths[missing].name} is missing, part {missing + 1} of 3"):
        GGUFFile(paths[(missing + 1) % 3])
    with pytest.raises((FormatError, ModelNotFoundError), match=r"is missing|does not exist"):
        GGUFFile(paths[missing])


@pytest.mark.parametrize("name", ["m-00004-of-00003.gguf", "m-00000-of-00003.gguf", "m-00001-of-00000.gguf"])
def test_a_part_number_out_of_range_is_refused(tmp_path: Path, name: str) -> None:
    write_gguf(tmp_path / name, {}, [])
    with pytest.raises(FormatError, match="is named as part"):
        GGUFFile(tmp_path / name)


def test_a_damaged_second_part_is_named(tmp_path: Path) -> None:
    paths = write_split(tmp_path)
    os.truncate(paths[1], 50)
    with pytest.raises(FormatError, match=r"^m-00002-of-00003\.gguf: "):
        GGUFFile(paths[0])


def agrees_with_peer(path: Path) -> None:
    peer = gguf.GGUFReader(path)
    with GGUFFile(path) as file:
        for key, field in peer.fields.items():
            if not key.startswith("GGUF."):
                assert file.metadata[key] == field.contents(), key
        assert list(file.tensors) == [tensor.name for tensor in peer.tensors]
        for tensor in peer.tensors:
            info = file.tensors[tensor.name]
            assert info.shape == tuple(reversed(tensor.shape.tolist()))
            assert info.fmt.type_id == tensor.tensor_type
            assert (info.offset, info.nbytes) == (tensor.data_offset, tensor.n_bytes)
            assert np.array_equal(
                np.frombuffer(file.data(info.name), np.uint8), tensor.data.view(np.uint8).ravel()
            )


def test_a_real_file_reads_as_in_the_gguf_package(stories_path: Path) -> None:
    agrees_with_peer(stories_path)


def test_real_vocabularies_read_as_in_the_gguf_package(vocab_dir: Path) -> None:
    agrees_with_peer(vocab_dir / "ggml-vocab-llama-spm.gguf")


@pytest.mark.model
def test_the_default_models_have_the_known_shape(smollm2_path: Path, gemma3_path: Path) -> None:
    with GGUFFile(smollm2_path) as file:
        assert (file.version, file.alignment, len(file.tensors), len(file.metadata)) == (3, 32, 272, 33)
        assert file.tensors["token_embd.weight"].shape == (49_152, 576)
        assert len(file.metadata["tokenizer.ggml.merges"]) == 48_900
    with GGUFFile(gemma3_path) as file:
        assert file.tensors["token_embd.weight"].shape == (262_144, 640)
        tokens = file.metadata["tokenizer.ggml.tokens"]
        assert len(tokens) == len(set(tokens)) == 262_144
        assert tokens[2] == "<bos>"


def test_things_that_are_no_files_are_refused_and_never_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    (tmp_path / "loop.gguf").symlink_to("loop.gguf")
    (tmp_path / "dangling.gguf").symlink_to("nowhere")
    (tmp_path / "folder.gguf").mkdir()
    for name, error, message in [
        ("pipe.gguf", FormatError, "not a regular file"),
        ("folder.gguf", FormatError, "is a folder"),
        ("loop.gguf", FormatError, "cannot be read: Too many levels"),
        ("dangling.gguf", ModelNotFoundError, "does not exist"),
        ("missing.gguf", ModelNotFoundError, "does not exist"),
        ("x" * 300, FormatError, "cannot be read: File name too long"),
        ("nul\0.gguf", FormatError, "cannot be read: .*null"),
    ]:
        with pytest.raises(error, match=message):
            GGUFFile(tmp_path / name)
    with pytest.raises(FormatError, match="null is not a regular file"):
        GGUFFile("/dev/null")


def test_importing_the_reader_and_opening_a_file_loads_nothing_heavy(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", {"k": ["a"]}, [weights("a")])
    script = (
        "import sys; from nanollama.formats.gguf import GGUFFile; file = GGUFFile(sys.argv[1]);"
        "file.metadata['k']; file.data('a');"
        "print([m for m in ('numpy', 'torch', 'tokenizers', 'jinja2') if m in sys.modules])"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "m.gguf")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"
