import json
import re

import pytest

from models import make_checkpoint, make_gguf, record_for
from nanollama.cli.main import main
from nanollama.cli.show import count_text
from nanollama.store.recipe import Recipe
from nanollama.store.store import Store
from nanollama.types import Message

RECIPE = Recipe(
    system="Be brief.\nBe kind.",
    parameters={"temperature": 0.5, "top_k": 3, "stop": ("<|end|>", "a b")},
    messages=(Message("user", "Hi"),),
    licences=("MIT",),
)
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


@pytest.fixture(autouse=True)
def mine(tmp_path, monkeypatch):
    """A model ``mine`` with a recipe, and its file."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    path = make_gguf(tmp_path / "mine.gguf", tokenizer__chat_template=TEMPLATE, general__license="apache-2.0")
    Store().add(record_for(path, "mine", recipe=RECIPE))
    return path


def shown(capsys, *argv):
    assert main(["show", *argv]) == 0
    return capsys.readouterr().out


def test_the_overview_has_the_details_and_the_recipe(capsys):
    assert shown(capsys, "mine") == (
        "  Model\n"
        "    architecture        llama\n"
        "    parameters          64\n"
        "    context length      128\n"
        "    quantization        F32\n"
        "\n"
        "  Parameters\n"
        "    temperature         0.5\n"
        "    top_k               3\n"
        '    stop                "<|end|>"\n'
        '    stop                "a b"\n'
        "\n"
        "  System\n"
        "    Be brief.\n"
        "    Be kind.\n"
        "\n"
        "  Template\n"
        f"    {TEMPLATE}\n"
        "\n"
        "  License\n"
        "    MIT\n"
    )


@pytest.mark.parametrize(
    ("part", "text"),
    [
        ("--system", "Be brief.\nBe kind.\n"),
        ("--template", TEMPLATE + "\n"),
        ("--license", "MIT\n"),
        (
            "--parameters",
            'temperature         0.5\ntop_k               3\nstop                "<|end|>"\n'
            'stop                "a b"\n',
        ),
        ("--tensors", "NAME             TYPE    SHAPE\noutput.weight    F32     2 x 32\n"),
    ],
)
def test_one_part_is_printed_alone(part, text, capsys):
    assert shown(capsys, "mine", part) == text


def test_the_modelfile_makes_the_same_recipe_again(capsys, mine):
    from nanollama.store.modelfile import parse

    modelfile = parse(shown(capsys, "mine", "--modelfile"))
    assert (modelfile.from_, modelfile.recipe) == (str(mine), RECIPE)


def test_json_has_everything(capsys, mine):
    value = json.loads(shown(capsys, "mine", "--json"))
    assert value["name"] == "mine:latest"
    assert value["path"] == str(mine)
    assert value["context_length"] == 128
    assert value["recipe"]["system"] == RECIPE.system
    assert value["metadata"]["general.license"] == "apache-2.0"
    assert value["tensors"] == [{"name": "output.weight", "type": "F32", "shape": [2, 32]}]


@pytest.mark.parametrize("flag", ["-v", "--verbose"])
def test_verbose_adds_the_metadata_and_the_tensors_to_the_overview(capsys, mine, flag):
    text = shown(capsys, "mine", flag)
    assert text.startswith(shown(capsys, "mine").rstrip("\n"))
    assert re.search(r"^    general\.license +apache-2\.0$", text, re.MULTILINE)
    assert text.endswith(shown(capsys, "mine", "--tensors"))


def test_a_path_is_shown_without_a_recipe(capsys, mine):
    assert "apache-2.0" in shown(capsys, str(mine))
    assert main(["show", str(mine), "--modelfile"]) == 2
    assert "nanollama import PATH" in capsys.readouterr().err


def test_a_checkpoint_folder_is_shown(capsys, tmp_path):
    folder = make_checkpoint(tmp_path / "checkpoint")
    text = shown(capsys, str(folder))
    assert "embedding length    32" in text
    assert "quantization        F32" in text


def test_a_long_text_is_shortened_in_the_overview_only(capsys, mine):
    lines = [f"line {number}" for number in range(20)]
    Store().add(record_for(mine, "long", recipe=Recipe(system="\n".join(lines))))
    assert "... (20 lines; --system prints all)" in shown(capsys, "long")
    assert shown(capsys, "long", "--system").splitlines() == lines


def test_two_parts_at_once_are_refused(capsys):
    assert main(["show", "mine", "--system", "--template"]) == 2


def test_what_is_not_here_is_not_fetched(capsys):
    assert main(["show", "smollm2"]) == 1
    assert "nanollama pull smollm2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("count", "text"),
    [(999, "999"), (134_515_008, "134.5M"), (1_235_814_400, "1.2B"), (64_000, "64.0K"), (2 * 10**12, "2.0T")],
)
def test_parameters_are_counted_in_thousands_of_thousands(count, text):
    assert count_text(count) == text


@pytest.mark.model
def test_a_real_model_is_shown(smollm2_path, capsys):
    text = shown(capsys, str(smollm2_path))
    assert "parameters          134.5M" in text
    assert "quantization        Q4_1" in text
