import pytest

from nanollama.cli.main import main


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_the_whole_catalogue_is_listed_without_asking_anybody(capsys):
    assert main(["search"]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[0].split() == ["NAME", "SIZE", "LICENCE"]
    assert "smollm2:135m" in captured.out
    assert captured.err == ""


def test_all_words_must_match(capsys):
    assert main(["search", "smollm2", "135M"]) == 0
    captured = capsys.readouterr()
    assert [line.split()[0] for line in captured.out.splitlines()] == ["NAME", "smollm2:135m"]
    assert captured.err.startswith("nanollama: only the catalogue was searched: ")
    assert captured.err.count("\n") == 1


def test_nothing_found_is_said_and_is_1(capsys):
    assert main(["search", "zzzzzz"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "nothing found" in captured.err


def test_what_could_be_found_and_not_run_is_marked(capsys):
    assert main(["search", "nomic"]) == 0
    assert "computes embeddings: can't be run" in capsys.readouterr().out
