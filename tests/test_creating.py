"""What FROM and --quantize mean."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanollama.creating import adapters_of, base_of
from nanollama.errors import NanollamaError, UsageError
from nanollama.store.recipe import Recipe


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.gguf").touch()
    (tmp_path / "plain").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy/config.json").touch()
    (tmp_path / "toy/model.safetensors").touch()
    return tmp_path


@pytest.mark.parametrize(
    "text", ["a.gguf", "./a.gguf", "plain", "toy", "./toy/", "./empty", "empty/../a.gguf"]
)
def test_what_exists_beside_the_modelfile_is_a_path(folder: Path, text: str) -> None:
    assert base_of(text, folder) == os.path.normpath(folder / text)
    assert base_of(str(folder / text), Path("elsewhere")) == os.path.normpath(folder / text)


@pytest.mark.parametrize("text", ["smollm2", "empty", "user/model:tag", "hf.co/user/repo:Q8_0", "b.gguf"])
def test_what_does_not_exist_is_a_name(folder: Path, text: str) -> None:
    assert base_of(text, folder) == text


def test_a_home_folder_is_expanded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    assert base_of("~/a.gguf", Path()) == str(folder / "a.gguf")
    assert adapters_of(Recipe(adapters=("~/plain",)), Path()) == (str(folder / "plain"),)


@pytest.mark.parametrize("text", ["./b.gguf", "/none/b.gguf", "~/none.gguf", "../none"])
def test_what_can_only_be_a_path_must_be_there(folder: Path, text: str) -> None:
    with pytest.raises(UsageError, match=r"FROM is .* and there is no"):
        base_of(text, folder)


hostile = st.text(max_size=40) | st.sampled_from(
    ["\0", "a" * 5000, "./" + "a/" * 3000, "~nobody/x", "\ud800"]
)


@given(hostile)
def test_any_text_is_a_base_or_refused_with_a_sentence(text: str) -> None:
    try:
        base_of(text, Path("/nonexistent"))
        adapters_of(Recipe(adapters=(text,)), Path("/nonexistent"))
    except NanollamaError as error:
        assert str(error)  # noqa: PT017  # anything else fails the test
