import re

import pytest

from models import make_gguf, record_for
from nanollama.cli.main import main
from nanollama.store.names import ModelName
from nanollama.store.store import Store


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return Store()


@pytest.fixture
def fetched(store):
    path = make_gguf(store.folder(ModelName.parse("a")) / "a.gguf")
    return store.add(record_for(path, "a", owned=True))


def test_du_shows_each_file_once_and_what_belongs_to_no_model(store, fetched, tmp_path, capsys):
    store.copy(fetched.name, ModelName.parse("b"))
    store.import_path(str(make_gguf(tmp_path / "c.gguf")))
    (fetched.folder / "z.gguf.part").write_bytes(bytes(1000))
    assert main(["du"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [re.split(r"\s{2,}", line) for line in lines] == [
        ["SIZE", "WHAT"],
        ["416 B", "a:latest"],
        ["416 B", "c:latest", "outside the store's folder"],
        ["0 B", "b:latest", "416 B shared with a:latest"],
        ["1 kB", "library/a/latest/z.gguf.part", "an unfinished download"],
        ["1 kB", "in total", f"in {store.root}"],
        ["416 B", "in total", "elsewhere"],
    ]


def test_du_of_an_empty_store_is_nothing_in_total(store, capsys):
    assert main(["du"]) == 0
    assert capsys.readouterr().out.split()[2:] == ["0", "B", "in", "total", "in", str(store.root)]
    assert not store.root.exists()


def test_verify_says_of_each_model_whether_it_is_right(store, fetched, tmp_path, capsys):
    other = make_gguf(tmp_path / "c.gguf")
    store.import_path(str(other))
    assert main(["verify"]) == 0
    assert capsys.readouterr().out == "a:latest is right (1 file)\nc:latest is right (1 file)\n"
    other.write_bytes(bytes(other.stat().st_size))
    assert main(["verify"]) == 1
    assert capsys.readouterr().out.splitlines()[1:] == [
        "c:latest is damaged",
        f"  {other} does not have the sha256 it was registered with",
    ]
    assert main(["verify", "a"]) == 0


def test_verify_of_an_unknown_name_is_one_sentence(store, fetched, capsys):
    assert main(["verify", "nothing-like-it", "a"]) == 1
    captured = capsys.readouterr()
    assert "there is no model 'nothing-like-it'" in captured.err
    assert captured.out == "a:latest is right (1 file)\n"


def test_verify_reads_a_file_once_however_many_names_share_it(store, fetched, capsys):
    store.copy(fetched.name, ModelName.parse("second"))
    assert main(["verify"]) == 0
    captured = capsys.readouterr()
    assert captured.out.count("is right (1 file)") == 2
    assert captured.err.count("done") == 1
    fetched.path.write_bytes(bytes(fetched.size))
    assert main(["verify"]) == 1
    assert capsys.readouterr().out.count("is damaged") == 2
