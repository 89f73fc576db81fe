"""Names over files: a created or copied model shares the files of its base."""

import os

import pytest

from models import make_gguf, record_for
from nanollama.errors import FormatError, ModelNotFoundError, UsageError
from nanollama.store.names import ModelName
from nanollama.store.recipe import Recipe
from nanollama.store.store import Located, Store

A, B, C = (ModelName.parse(text) for text in ("a", "b", "c:1"))
PIRATE = Recipe(system="You are a pirate.", parameters={"temperature": 1.0})


def names(store):
    return [str(record.name) for record in store.list()]


def test_a_registered_model_is_found_by_its_name(store, fetched):
    assert store.find(A) == fetched
    located = store.locate("a")
    assert located == Located(fetched.path, fetched.recipe, A, fetched)


def test_a_created_model_shares_the_file_of_its_base_and_has_its_own_recipe(store, fetched):
    created = store.create(C, store.locate("a"), PIRATE, "a:latest")
    assert store.locate("c:1").recipe == PIRATE
    assert (created.path, created.digest, created.parent) == (fetched.path, fetched.digest, "a:latest")
    assert store.find(A) == fetched
    assert names(store) == ["c:1", "a:latest"]


def test_a_model_is_created_from_a_file_anywhere(store, tmp_path):
    path = make_gguf(tmp_path / "mine.gguf")
    created = store.create(C, store.locate(str(path)), PIRATE, str(path))
    assert (created.path, created.owned) == (path, False)
    store.remove(C)
    assert path.exists()


def test_a_model_is_not_created_from_a_file_that_is_none(store, tmp_path):
    (tmp_path / "bad.gguf").write_bytes(b"nothing")
    with pytest.raises(FormatError):
        store.create(C, store.locate(str(tmp_path / "bad.gguf")), PIRATE, "bad.gguf")
    assert names(store) == []


def test_a_base_that_was_removed_meanwhile_is_not_registered_again(store, fetched):
    located = store.locate("a")
    store.remove(A)
    with pytest.raises(ModelNotFoundError):
        store.create(C, located, PIRATE, "a")
    assert names(store) == []


def test_creating_over_a_model_deletes_what_nothing_uses_any_more(store, fetched, imported):
    store.create(A, store.locate("b"), PIRATE, "b")
    assert not fetched.path.exists()
    assert store.find(A).path == imported.path


def test_creating_over_the_base_itself_keeps_its_file(store, fetched):
    store.create(A, store.locate("a"), PIRATE, "a")
    assert store.find(A).recipe == PIRATE


def test_a_copy_takes_no_name_that_is_taken_unless_it_is_told_to(store, fetched, imported):
    with pytest.raises(UsageError, match="there is a model b:latest already"):
        store.copy(A, B)
    store.copy(A, B, replacing=True)
    assert store.find(B).path == fetched.path
    assert imported.path.exists()


def test_a_copy_needs_a_model_and_another_name(store, fetched):
    with pytest.raises(UsageError, match="the same model"):
        store.copy(A, A)
    with pytest.raises(ModelNotFoundError):
        store.copy(B, C)


def test_owned_files_outside_the_store_are_refused(store, tmp_path):
    record = record_for(make_gguf(tmp_path / "x.gguf"), "a", owned=True)
    with pytest.raises(UsageError):
        store.add(record)
    assert names(store) == []


def test_a_model_without_its_files_is_not_registered(store, tmp_path):
    record = record_for(make_gguf(tmp_path / "x.gguf"), "a")
    record.path.unlink()
    with pytest.raises(UsageError, match="missing"):
        store.add(record)


DAMAGES = {
    "gone": lambda path: path.unlink(),
    "shorter": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "a link": lambda path: (path.rename(path.with_name("x")), path.symlink_to(path.with_name("x"))),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_model_whose_file_is_not_there_is_hidden_reported_and_can_be_removed(damage, store, fetched):
    damage(fetched.path)
    assert names(store) == []
    assert store.find(A) is None
    assert len(store.verify(A).problems) == 1
    with pytest.raises(ModelNotFoundError):
        store.copy(A, B)
    store.remove(A)
    assert store.state().records == {}


def test_the_same_damaged_register_is_told_to_whoever_asked(tmp_path):
    notices = []
    store = Store(tmp_path, catalogue=(), notice=notices.append)
    (tmp_path / "models.json").write_bytes(b"{")
    assert store.list() == []
    assert len(notices) == 1
