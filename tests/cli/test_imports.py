import pytest

from models import make_checkpoint, make_gguf
from nanollama.cli.main import main
from nanollama.store.store import Store


@pytest.fixture(autouse=True)
def empty_store(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv("OLLAMA_MODELS", raising=False)
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)


def names():
    return {str(record.name) for record in Store().list()}


def test_a_file_is_registered_where_it_lies(tmp_path, capsys):
    path = make_gguf(tmp_path / "Mine-Q8_0.gguf")
    assert main(["import", str(path)]) == 0
    assert capsys.readouterr().out == f"mine:q8_0 is registered: {path}\n"
    assert main(["import", str(path), "--name", "other"]) == 0
    assert names() == {"mine:q8_0", "other:latest"}
    assert list((tmp_path / "data").rglob("*.gguf")) == []


def test_a_folder_is_registered_where_it_lies(tmp_path, monkeypatch):
    make_checkpoint(tmp_path / "checkpoint")
    monkeypatch.chdir(tmp_path)
    assert main(["import", "checkpoint"]) == 0
    assert names() == {"checkpoint:latest"}


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (["no-such.gguf"], 1, "there is no file"),
        (["ollama", "--name", "x"], 2, "--name is for one file or folder"),
        (["x.gguf", "--from", "y"], 2, "--from is for"),
        (["ollama", "--from", "/nowhere"], 2, "there are no Ollama models in /nowhere"),
        (["hf", "--from", "/nowhere"], 2, "there is no Hugging Face cache at /nowhere"),
    ],
)
def test_what_can_not_be_imported_is_one_sentence(argv, code, says, capsys):
    assert main(["import", *argv]) == code
    captured = capsys.readouterr()
    assert says in captured.err
    assert captured.err.count("\n") == 1
    assert names() == set()


def test_a_cache_without_a_model_says_so(tmp_path, capsys):
    (tmp_path / "hub").mkdir()
    assert main(["import", "hf", "--from", str(tmp_path / "hub")]) == 1
    assert capsys.readouterr().err == "nanollama: no model was registered\n"


def test_a_name_that_another_model_has_is_skipped_and_said_so(tmp_path, capsys):
    own = make_gguf(tmp_path / "own.gguf")
    assert main(["import", str(own), "--name", "hf.co/me/repo:q8_0"]) == 0
    snapshot = tmp_path / "hub/models--me--repo/snapshots" / ("0" * 40)
    make_gguf(snapshot / "a-Q8_0.gguf")
    make_gguf(snapshot / "a-Q4_0.gguf")
    capsys.readouterr()
    assert main(["import", "hf", "--from", str(tmp_path / "hub")]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"hf.co/me/repo:q4_0 is registered: {snapshot / 'a-Q4_0.gguf'}\n"
    assert captured.err == f"skipped hf.co/me/repo:q8_0: there is a model of that name at {own}\n"
