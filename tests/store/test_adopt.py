"""Files in the folders of the store are models, also without an entry in the register."""

import pytest

from models import make_gguf
from nanollama.errors import UsageError
from nanollama.store.names import ModelName

A, B, C = (ModelName.parse(text) for text in ("a", "b", "c:1"))


def names(store):
    return [str(record.name) for record in store.list()]


def test_a_file_in_a_folder_of_the_store_is_a_model_and_keeps_to_be_one(store, fetched):
    path = make_gguf(store.root / "me/mine/v1/weights.gguf")
    mine = ModelName.parse("me/mine:v1")
    assert store.find(mine).path == path
    store.copy(mine, C)
    assert set(names(store)) == {"c:1", "me/mine:v1", "a:latest"}
    store.remove(C)
    assert store.find(mine).path == path


def test_a_file_that_was_put_there_by_hand_is_deleted_only_on_demand(store):
    path = make_gguf(store.root / "me/mine/v1/weights.gguf")
    mine = ModelName.parse("me/mine:v1")
    with pytest.raises(UsageError, match="nanollama rm --delete-file me/mine:v1"):
        store.remove(mine)
    assert path.exists()
    assert store.remove(mine, delete_file=True).deleted == (path,)
    assert names(store) == []


@pytest.mark.parametrize(
    "file",
    ["me/mine/v1/m-00001-of-00002.gguf", "me/mine/v1+2/m.gguf", "me/mine/m.gguf", "uploads/sha256-0.gguf"],
)
def test_parts_and_other_files_are_no_models(file, store):
    make_gguf(store.root / file)
    assert names(store) == []


def test_a_model_of_another_host_has_a_folder_of_its_own(store):
    path = make_gguf(store.root / "hf.co/me/mine/q4/m.gguf")
    assert store.find(ModelName.parse("hf.co/me/mine:q4")).path == path
    assert store.folder(ModelName.parse("localhost:80/me/mine:q4")) == store.root / "localhost+80/me/mine/q4"
