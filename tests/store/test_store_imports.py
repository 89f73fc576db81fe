"""Files and folders anywhere are registered where they lie."""

import struct

import pytest

from models import make_checkpoint, make_gguf
from nanollama.errors import FormatError, NanollamaError, UsageError
from nanollama.store.names import ModelName
from nanollama.store.recipe import Recipe
from nanollama.store.store import Located

A, B, C = (ModelName.parse(text) for text in ("a", "b", "c:1"))


def names(store):
    return [str(record.name) for record in store.list()]


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("Other Model.gguf", "other-model:latest"),
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2-135m-instruct:q4_1"),
        ("Llama-3.2-1B-Instruct-Q4_K_M.gguf", "llama-3.2-1b-instruct:q4_k_m"),
        ("q8_0.gguf", "model:q8_0"),
        ("ünïcode.gguf", "n-code:latest"),
        ("...gguf.gguf", "gguf:latest"),
    ],
)
def test_an_imported_file_is_called_like_itself(file, name, store, tmp_path):
    record = store.import_path(str(make_gguf(tmp_path / file)))
    assert str(record.name) == name
    assert store.find(record.name) == record
    assert record.source == f"imported from {tmp_path / file}"


def test_a_name_is_not_taken_from_another_model_by_an_import(store, imported, tmp_path):
    with pytest.raises(UsageError, match="with --name"):
        store.import_path(str(make_gguf(tmp_path / "other.gguf")), B)
    assert store.import_path(str(imported.path), B).path == imported.path


def test_a_checkpoint_folder_is_imported_with_all_its_files(store, tmp_path):
    folder = make_checkpoint(tmp_path / "My-Checkpoint")
    (folder / "picture.png").write_bytes(b"")
    record = store.import_path(str(folder))
    assert (str(record.name), record.format) == ("my-checkpoint:latest", "safetensors")
    assert [file.name for file in record.files] == ["config.json", "model.safetensors"]
    assert record.digest is not None
    assert store.locate("my-checkpoint").path == folder
    assert store.locate(str(folder)) == Located(folder, Recipe())
    assert store.verify(record.name).problems == ()


def test_a_checkpoint_with_a_shard_missing_is_refused(store, tmp_path):
    folder = make_checkpoint(tmp_path / "sharded")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"w": "model-2.safetensors"}}')
    with pytest.raises(FormatError, match=r"model-2.safetensors is missing"):
        store.import_path(str(folder))
    (folder / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(FormatError, match="is not an index"):
        store.import_path(str(folder))


@pytest.mark.parametrize("path", ["/dev/zero", "/no/such.gguf", "/", "\0"])
def test_what_is_no_model_is_not_imported(path, store):
    with pytest.raises(NanollamaError):
        store.import_path(path)
    assert names(store) == []


def test_all_parts_of_a_split_model_are_registered(store, tmp_path):
    for number in (1, 2):
        data = b"GGUF" + struct.pack("<IQQ", 3, 0, 2)
        for key, value in (("split.no", number - 1), ("split.count", 2)):
            data += struct.pack("<Q", len(key)) + key.encode() + struct.pack("<IH", 2, value)
        (tmp_path / f"m-0000{number}-of-00002.gguf").write_bytes(data + bytes(32))
    record = store.import_path(str(tmp_path / "m-00002-of-00002.gguf"))
    assert len(record.files) == 2
    assert str(record.name) == "m:latest"
    record.paths[0].unlink()
    assert names(store) == []
