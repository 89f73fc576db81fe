"""``create``: from a Modelfile to a model that answers by its recipe, through the command line."""

import io
import json
import os
import sys
from pathlib import Path

import pytest

from nanollama import LLM
from nanollama.cli.main import main
from nanollama.errors import UnsupportedError
from nanollama.formats.gguf import GGUFFile
from nanollama.store.modelfile import modelfile_of
from nanollama.store.names import ModelName
from nanollama.store.recipe import Recipe
from nanollama.store.store import Store
from nanollama.types import Message

GO = "TEMPLATE {{ if .System }}{{ .System }}: {{ end }}{{ .Prompt }} - {{ .Response }}"


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store of its own, found through the environment."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return Store()


@pytest.fixture
def folder(tmp_path: Path, stories_path: Path) -> Path:
    """A folder with a model for Modelfiles that name it by a relative path."""
    folder = tmp_path / "recipes"
    folder.mkdir()
    (folder / "tiny.gguf").symlink_to(stories_path)
    return folder


@pytest.fixture
def create(folder: Path):
    """Creates the model ``name`` from the lines of a Modelfile."""

    def run(name: str, *lines: str, options: tuple[str, ...] = ()) -> int:
        (folder / "Modelfile").write_text("\n".join(lines))
        return main(["create", name, "-f", str(folder / "Modelfile"), *options])

    return run


def test_a_model_is_created_from_a_file_beside_its_modelfile(
    create, store: Store, folder: Path, capsys
) -> None:
    assert create("mario", "FROM ./tiny.gguf", "SYSTEM You are Mario.", "PARAMETER seed 1") == 0
    assert capsys.readouterr().out.startswith("mario:latest is made from")
    [record] = store.list()
    assert record.path == folder / "tiny.gguf"
    assert not record.owned
    assert record.recipe == Recipe(system="You are Mario.", parameters={"seed": 1})


def test_a_model_on_top_of_another_has_what_it_leaves_open(create, store: Store, capsys) -> None:
    create("base", "FROM tiny.gguf", "SYSTEM Be brief.", "PARAMETER seed 1", "LICENSE MIT")
    assert create("top", "FROM base", "PARAMETER seed 2", "LICENSE BSD", "MESSAGE user hi") == 0
    record = store.find(ModelName.parse("top"))
    assert record.parent == "base:latest"
    messages = (Message("user", "hi"),)
    assert record.recipe == Recipe(None, "Be brief.", {"seed": 2}, messages, ("MIT", "BSD"))
    assert "top:latest is made from base:latest" in capsys.readouterr().out


def test_the_printed_modelfile_creates_the_same_model_again(create, store: Store) -> None:
    create(
        "first", "FROM tiny.gguf", GO, 'SYSTEM "a\nb"', "PARAMETER stop x", "LICENSE MIT", "MESSAGE user hi"
    )
    first = store.find(ModelName.parse("first"))
    assert create("second", modelfile_of(first)) == 0
    second = store.find(ModelName.parse("second"))
    assert (second.recipe, second.path) == (first.recipe, first.path)
    assert modelfile_of(second) == modelfile_of(first).replace("first:latest", "second:latest")


def test_the_file_of_a_model_is_the_same_by_its_path_as_by_its_name(create, store, stories_path) -> None:
    create("ours", f"FROM {stories_path}", options=("--quantize", "q8_0"))
    ours = store.find(ModelName.parse("ours"))
    create("again", modelfile_of(ours))
    again = store.find(ModelName.parse("again"))
    assert (again.id, again.files, again.owned) == (ours.id, ours.files, True)
    assert main(["rm", "ours", "again"]) == 0
    assert not ours.path.exists()


def test_standard_input_and_the_file_in_the_current_folder(folder: Path, store: Store, monkeypatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "Modelfile").write_text("FROM ./tiny.gguf")
    assert main(["create", "here"]) == 0
    piped = io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbfFROM ./tiny.gguf\r\nSYSTEM hi\r\n"))
    monkeypatch.setattr(sys, "stdin", piped)
    assert main(["create", "piped", "-f", "-"]) == 0
    assert store.find(ModelName.parse("piped")).recipe == Recipe(system="hi")
    assert {str(record.name) for record in store.list()} == {"here:latest", "piped:latest"}


def test_paths_in_a_modelfile_that_comes_through_a_pipe_are_those_of_the_shell(folder, store, monkeypatch):
    monkeypatch.chdir(folder)
    reading, writing = os.pipe()
    os.write(writing, b"FROM ./tiny.gguf")
    os.close(writing)
    assert main(["create", "piped", "-f", f"/dev/fd/{reading}"]) == 0  # as of -f <(command)
    os.close(reading)
    assert store.find(ModelName.parse("piped")).path == folder / "tiny.gguf"


@pytest.mark.parametrize(
    ("lines", "code", "message"),
    [
        (["FROM ./none.gguf"], 2, "FROM is './none.gguf', and there is no"),
        (["FROM nosuchmodel"], 1, "nosuchmodel"),
        (["SYSTEM x"], 2, "the Modelfile has no FROM line"),
        (["FROM tiny.gguf", "PARAMETER tempretur 1"], 2, "line 2: unknown parameter 'tempretur'"),
        (["FROM tiny.gguf", "TEMPLATE {% if %}"], 2, "not valid Jinja"),
        (["FROM tiny.gguf", "TEMPLATE {{ .Nope }}"], 2, "line 2: the Go template uses the field .Nope"),
        (["FROM tiny.gguf", "ADAPTER ./none.gguf"], 2, "ADAPTER is"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_registered(create, store, capsys, lines, code, message) -> None:
    assert create("x", *lines) == code
    assert message in capsys.readouterr().err
    assert store.list() == []


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["create", "../x", "-f", "Modelfile"], "is not a model name"),
        (["create", "x", "-f", "none"], "there is no Modelfile 'none'"),
        (
            ["create", "x", "-f", "Modelfile", "-q", "q3_k"],
            "'q3_k' is no type to quantize to; expected one of Q8_0",
        ),
    ],
)
def test_a_wrong_command_is_refused(folder: Path, monkeypatch, capsys, argv: list[str], message: str) -> None:
    monkeypatch.chdir(folder)
    (folder / "Modelfile").write_text("FROM ./tiny.gguf")
    assert main(argv) == 2
    assert message in capsys.readouterr().err


def test_what_is_only_recorded_and_what_is_left_out_is_told(
    create, folder: Path, store: Store, capsys
) -> None:
    (folder / "lora.gguf").touch()
    lines = ["FROM tiny.gguf", "ADAPTER lora.gguf", "REQUIRES 0.14.0", "PARAMETER mirostat 1"]
    assert create("x", *lines) == 0
    told = capsys.readouterr().err
    assert "mirostat is deprecated" in told
    assert "REQUIRES 0.14.0 is recorded" in told
    assert "ADAPTER is recorded" in told
    assert store.find(ModelName.parse("x")).recipe.adapters == (str(folder / "lora.gguf"),)
    with pytest.raises(UnsupportedError, match="adapters can't be applied"):
        LLM("x")


@pytest.mark.parametrize(("asked", "wanted"), [("q8_0", "Q8_0"), ("q4_K_M", "Q4_K_M"), ("F32", "F32")])
def test_weights_are_quantized_into_the_store(create, store, stories_path, asked, wanted) -> None:
    assert create("small", "FROM tiny.gguf", "SYSTEM hi", options=("--quantize", asked)) == 0
    record = store.find(ModelName.parse("small"))
    assert (record.owned, record.recipe.system) == (True, "hi")
    assert record.path.is_relative_to(store.root)
    with GGUFFile(record.path) as file:
        assert file.metadata["general.file_type"] == {"Q8_0": 7, "Q4_K_M": 15, "F32": 0}[wanted]
    assert create("small", "FROM tiny.gguf", options=("--quantize", asked)) == 0
    again = store.find(ModelName.parse("small"))
    assert list(store.root.rglob("*.gguf")) == [again.path]  # the one before is gone
    store.remove(again.name)
    assert stories_path.exists()
    assert not list(store.root.rglob("*.gguf"))


def test_a_created_model_runs_by_its_recipe(create, capsys, monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    lines = ["FROM tiny.gguf", GO, "SYSTEM Lily", "MESSAGE user Once", "MESSAGE assistant upon a time."]
    create("story", *lines, "PARAMETER temperature 0", "PARAMETER num_predict 5", "PARAMETER num_ctx 128")
    capsys.readouterr()
    assert main(["run", "story", "She", "--json", "--backend", "torch"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert len(answer["token_ids"]) == 5
    with LLM("story", backend="torch", device="cpu") as llm:
        assert llm.n_ctx == 128
        expected = llm.generate("Lily: Once - upon a time.She - ", max_tokens=5)
        assert expected.text == answer["text"]
        assert llm.chat([Message("user", "She")]).text == answer["text"]


def test_a_folder_of_safetensors_is_a_base_as_it_is_and_quantized(create, folder, store) -> None:
    from folders import save_folder  # which imports transformers

    (folder / "toy").mkdir()
    save_folder(folder / "toy")
    assert create("toy", "FROM ./toy", "SYSTEM Be brief.", "PARAMETER num_predict 3") == 0
    assert store.find(ModelName.parse("toy")).format == "safetensors"
    assert modelfile_of(store.find(ModelName.parse("toy"))).splitlines()[2] == f"FROM {folder / 'toy'}"
    with LLM("toy", device="cpu", backend="torch") as llm:
        assert len(llm.chat([Message("user", "Hi")]).token_ids) <= 3
    assert create("small", "FROM toy", options=("-q", "q8_0")) == 0
    assert store.find(ModelName.parse("small")).format == "gguf"
    with LLM("small", device="cpu", backend="torch") as llm:
        assert len(llm.chat([Message("user", "Hi")], max_tokens=3).token_ids) <= 3
