"""A request names models of the store, never files of the machine."""

import pytest

from nanollama.errors import ModelNotFoundError, NanollamaError
from nanollama.server.source import StoreSource
from nanollama.store.names import ModelName
from nanollama.store.recipe import Recipe
from nanollama.store.store import Store
from server.scripted import ScriptedSource


@pytest.fixture
def store(tmp_path):
    folder = tmp_path / "store" / "mine" / "tiny" / "1m"
    folder.mkdir(parents=True)
    (folder / "tiny.gguf").write_bytes(b"GGUF")
    (tmp_path / "Other Model.gguf").write_bytes(b"GGUF")
    return Store(tmp_path / "store")


def test_the_models_of_the_store_are_found_by_name(store):
    source = StoreSource(None, store)
    assert [found.id for found in source.list()] == ["mine/tiny:1m"]
    assert source.find("mine/tiny:1m").size == 4
    assert source.find("MINE/Tiny:1m").path == source.list()[0].path


@pytest.mark.parametrize(
    "name", ["../Other Model.gguf", "tiny", "smollm2", "", "a" * 600, "mine/tiny:2m", "~/x.gguf"]
)
def test_nothing_else_is(store, name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path / "store")
    with pytest.raises(ModelNotFoundError) as missing:
        StoreSource(None, store).find(name)
    assert len(str(missing.value)) < 400


def test_not_even_by_its_path(store, tmp_path):
    for path in (tmp_path / "Other Model.gguf", tmp_path / "store/mine/tiny/1m/tiny.gguf"):
        with pytest.raises(ModelNotFoundError):
            StoreSource(None, store).find(str(path))


def test_the_file_that_the_operator_named_has_the_name_of_the_file(store, tmp_path):
    path = tmp_path / "Other Model.gguf"
    source = StoreSource(str(path), store)
    for name in ("Other Model", "Other Model.gguf", str(path)):
        assert source.find(name).path == path
    assert [found.id for found in source.list()] == ["Other Model", "mine/tiny:1m"]


def test_the_stored_model_that_the_operator_named_is_listed_once(store):
    source = StoreSource("mine/tiny:1m", store)
    assert [found.id for found in source.list()] == ["mine/tiny:1m"]
    assert source.find("mine/tiny:1m").argument == "mine/tiny:1m"


def test_what_the_operator_named_must_be_there(store):
    with pytest.raises(NanollamaError):
        StoreSource("smollm2", store)


def test_the_scripted_source_is_one_of_its_kind():
    assert {"find", "list"} <= set(dir(ScriptedSource()))


def test_the_list_of_the_terminal_and_that_of_the_server_show_the_same_digests(store):
    base = store.locate("mine/tiny:1m")
    for name, recipe in (("plain", Recipe()), ("pirate", Recipe(system="Arr"))):
        store.create(ModelName.parse(name), base, recipe, "mine/tiny:1m")
    ids = {str(record.name): record.id for record in store.list()}
    assert {found.id: found.digest for found in StoreSource(None, store).list()} == ids
    assert len(set(ids.values())) == 3
