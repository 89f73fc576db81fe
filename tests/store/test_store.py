import os
from pathlib import Path

import pytest

from models import make_gguf
from nanollama.errors import FormatError, ModelNotFoundError, UnsupportedError, UsageError
from nanollama.store.fetch import Fetcher, FetchSettings
from nanollama.store.names import ModelName
from nanollama.store.store import Store, default_root, locate

TOY = ModelName.parse("toy:1b")


@pytest.fixture
def gguf(tmp_path):
    path = tmp_path / "mine.gguf"
    path.write_bytes(b"GGUF")
    return path


# Resolving a name


def test_the_path_of_a_file_is_a_model_name(gguf, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "blob").write_bytes(b"GGUF")
    assert locate(str(gguf)).path == gguf
    assert locate("mine.gguf").path.samefile(gguf)
    assert locate("./mine.gguf").path.samefile(gguf)
    assert locate("~/mine.gguf").path == gguf
    assert locate("./blob").path.samefile(tmp_path / "blob")


def test_a_link_to_a_file_is_a_model_name(gguf, tmp_path):
    link = tmp_path / "link.gguf"
    link.symlink_to(gguf)
    assert locate(str(link)).path == link


def test_a_stored_model_is_found_without_asking_the_hub(hub, make_store):
    store = make_store()
    path = store.locate("toy:1b").path
    asked = len(hub.requests)
    assert store.locate("TOY:1B").path == path
    assert store.locate("library/toy:1b", fetch=False).path == path
    assert len(hub.requests) == asked


def test_a_file_in_the_current_folder_does_not_hide_a_model_of_that_name(make_store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy:1b").write_bytes(b"not this")
    store = make_store()
    assert store.locate("toy:1b").path.is_relative_to(store.root)


def test_an_absent_model_is_not_fetched_when_fetching_is_off(hub, make_store):
    with pytest.raises(ModelNotFoundError, match="fetch it with 'nanollama pull toy:1b'"):
        make_store().locate("toy:1b", fetch=False)
    assert hub.requests == []


@pytest.mark.parametrize(
    "name", ["no/such.gguf", "such.gguf", "/no/such/file", "./smollm2", "a/b/c/d", "../x.gguf"]
)
def test_what_looks_like_a_path_and_is_not_there_is_called_a_file(name, make_store):
    with pytest.raises(ModelNotFoundError, match="there is no file"):
        make_store().locate(name)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("smolm2", "did you mean smollm2?"),
        ("smollm2:134m", "did you mean smollm2:135m or smollm2:360m or smollm2:1.7b?"),
        ("gemma:latest", "did you mean gemma3?"),
        ("zzzzzzzzzz", "'nanollama search' lists what can be fetched"),
    ],
)
def test_an_unknown_name_gets_suggestions(name, hint, tmp_path):
    with pytest.raises(ModelNotFoundError) as caught:
        Store(tmp_path).locate(name)
    assert str(caught.value).endswith(hint)


@pytest.mark.parametrize("name", ["", "a b", "a\0b", "con", "é", "a:b:c"])
def test_what_can_be_neither_name_nor_path_is_a_usage_error(name, make_store):
    with pytest.raises(UsageError):
        make_store().locate(name)


@pytest.mark.parametrize("name", ["/\0", "x" * 5000 + ".gguf", "/" * 5000 + "x"])
def test_a_path_that_no_system_takes_is_a_missing_file(name, make_store):
    with pytest.raises(ModelNotFoundError):
        make_store().locate(name)


def test_a_folder_is_refused_with_advice(tmp_path, make_store, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "folder.gguf").mkdir()
    for name in (str(tmp_path), "folder.gguf", ".", "~"):
        with pytest.raises(FormatError, match=r"has no config\.json, so it is no model folder"):
            make_store().locate(name)
    (tmp_path / "mine.gguf").touch()
    for refuses in (make_store().locate, make_store().pull, make_store().import_path):
        with pytest.raises(FormatError, match=r"to run mine\.gguf, give its own path"):
            refuses(str(tmp_path))
    (tmp_path / "config.json").touch()
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(UnsupportedError, match=r"only as pytorch_model\.bin"):
        make_store().locate(str(tmp_path))


def test_a_folder_named_like_a_model_is_found_by_its_path(tmp_path, make_store, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    with pytest.raises(ModelNotFoundError, match=r"to mean the file or folder, write \./mine"):
        make_store().locate("mine")


def test_a_device_or_a_pipe_is_refused_without_opening_it(tmp_path, make_store):
    os.mkfifo(tmp_path / "pipe.gguf")
    for name in ("/dev/zero", str(tmp_path / "pipe.gguf")):
        with pytest.raises(UnsupportedError, match="not a regular file"):
            make_store().locate(name)


def test_the_store_lies_where_the_system_keeps_data(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_root() == tmp_path / "nanollama/models"
    monkeypatch.setenv("XDG_DATA_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_root() == tmp_path / ".local/share/nanollama/models"


# What counts as a stored model


def test_an_empty_store_lists_nothing_and_is_not_created(tmp_path):
    store = Store(tmp_path / "models")
    assert store.list() == []
    assert store.find(TOY) is None
    assert not store.root.exists()


def test_the_list_has_pulled_models_and_files_that_were_put_there(make_store):
    store = make_store()
    pulled = store.pull("toy:1b")
    own = store.root / "me/mine/v1/weights.gguf"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"GGUF")
    os.utime(own, (1, 1))
    assert [(str(model.name), model.size) for model in store.list()] == [
        ("toy:1b", 1_000_000),
        ("me/mine:v1", 4),
    ]
    assert store.list()[0] == pulled
    assert store.locate("me/mine:v1").path == own


@pytest.mark.parametrize(
    "file",
    [
        "library/toy/1b/toy.gguf.part",
        "library/toy/1b/other.gguf",
        "library/toy/toy.gguf",
        "library/toy/.hidden/toy.gguf",
        "me/con/v1/x.gguf",
    ],
)
def test_a_file_that_is_not_where_a_model_lies_is_not_one(file, make_store):
    store = make_store()
    path = store.root / file
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(1_000_000))
    assert store.list() == []
    assert store.find(TOY) is None


def test_a_file_of_the_wrong_size_is_not_the_model_and_is_replaced(make_store):
    store = make_store()
    path = store.pull("toy:1b").path
    path.write_bytes(path.read_bytes()[:-1])
    assert store.find(TOY) is None
    assert store.list() == []
    assert store.locate("toy:1b").path.stat().st_size == 1_000_000


def test_a_file_zeroed_by_a_bad_disk_is_noticed_and_replaced_by_a_pull(hub, make_store):
    store = make_store()
    path = store.pull("toy:1b").path
    path.write_bytes(bytes(1_000_000))
    assert store.pull("toy:1b").path.read_bytes() == hub.content


def test_a_link_in_place_of_a_model_is_not_followed(make_store, tmp_path, hub):
    store = make_store()
    victim = tmp_path / "victim"
    victim.write_bytes(bytes(1_000_000))
    final = store.root / "library/toy/1b/toy.gguf"
    final.parent.mkdir(parents=True)
    final.symlink_to(victim)
    (final.parent / "toy.gguf.part").symlink_to(victim)
    assert store.find(TOY) is None
    assert store.pull("toy:1b").path.read_bytes() == hub.content
    assert not final.is_symlink()
    assert victim.read_bytes() == bytes(1_000_000)


def test_a_name_with_a_host_never_means_a_file_of_the_store(make_store):
    store = make_store()
    store.pull("toy:1b")
    assert store.find(ModelName.parse("hub.example.org/library/toy:1b")) is None


def test_the_store_lies_where_its_variable_says_and_not_in_the_folder_of_ollama(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    monkeypatch.setenv("OLLAMA_MODELS", "/ollama")
    assert default_root() == Path("/data/nanollama/models")
    monkeypatch.setenv("NANOLLAMA_MODELS", "~/mine")
    monkeypatch.setenv("HOME", "/home/me")
    assert default_root() == Path("/home/me/mine")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NANOLLAMA_MODELS", "here")
    assert default_root() == tmp_path / "here"


@pytest.mark.parametrize("way", ["../b/m.gguf", "../b/../b/m.gguf", "link/../b/m.gguf"])
def test_a_path_that_leads_upwards_is_registered_as_what_it_means(way, tmp_path, monkeypatch):
    there = make_gguf(tmp_path / "b/m.gguf")
    (tmp_path / "a").mkdir()
    (tmp_path / "c").mkdir()
    (tmp_path / "a/link").symlink_to(tmp_path / "c")
    monkeypatch.chdir(tmp_path / "a")
    store = Store(tmp_path / "store", catalogue=())
    assert store.import_path(way).path == there
    assert [record.path for record in store.list()] == [there], "the register was read again"


@pytest.mark.parametrize("name", ["nomic-embed-text", "all-minilm:22m"])
def test_a_model_that_computes_embeddings_is_refused_before_anything_is_fetched(name, hub, tmp_path):
    store = Store(tmp_path / "models", Fetcher(FetchSettings(endpoint=hub.url)))
    for way in (store.pull, store.locate, lambda text: store.locate(text, fetch=False)):
        with pytest.raises(UnsupportedError, match="computes embeddings, which nanollama can't do"):
            way(name)
    assert hub.requests == []
