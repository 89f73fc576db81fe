import json
import os
import re
import subprocess
import sys

import pytest

from models import make_gguf, record_for
from nanollama.cli.main import main
from nanollama.store.names import ModelName
from nanollama.store.store import Store
from nanollama.units import age_text, size_text

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
    (own_id,) = (each.id[:12] for each in Store().list() if each.digest is None)
    assert re.split(r"\s{2,}", header) == ["NAME", "ID", "SIZE", "MODIFIED"]
    assert re.split(r"\s{2,}", first) == ["me/my-own-model:v1", own_id, "4 B", "just now"]
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
            "id": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            "digest": "sha256:b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            "size": 98362432,
            "modified": "1970-01-02T00:00:00Z",
            "format": "gguf",
            "path": str(with_smollm2),
            "source": "catalogue",
            "parent": None,
        }
    ]


def test_commands_over_the_store_import_nothing_slow(with_smollm2):
    code = (
        "import sys\n"
        "from nanollama.cli.main import main\n"
        "main(['list']); main(['show', 'smollm2']); main(['show', 'nothing']); main(['du'])\n"
        "main(['rm', 'nothing']); main(['cp', 'smollm2', 'b']); main(['path', 'b']); main(['rm', 'b'])\n"
        "main(['completion', 'bash']); main(['search']); main(['pull', 'nothing'])\n"
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


# rm, cp, path


@pytest.fixture
def two(data_home, tmp_path_factory):
    """A model ``mine`` that lies elsewhere, and ``kept``, which nanollama has fetched."""
    store = Store()
    elsewhere = make_gguf(tmp_path_factory.mktemp("elsewhere") / "mine.gguf")
    store.import_path(str(elsewhere), ModelName.parse("mine"))
    kept = make_gguf(store.folder(ModelName.parse("kept")) / "kept.gguf")
    store.add(record_for(kept, "kept", owned=True))
    return elsewhere, kept


def test_list_can_print_names_alone(two, capsys):
    assert main(["list", "--names"]) == 0
    assert capsys.readouterr().out == "mine:latest\nkept:latest\n"


def test_rm_says_what_it_deleted_and_what_it_kept(two, capsys):
    elsewhere, kept = two
    assert main(["rm", "mine", "kept"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "removed mine:latest",
        f"  kept {elsewhere}: nanollama did not fetch it; --delete-file deletes such a file",
        "removed kept:latest",
        f"  deleted {kept}",
    ]
    assert main(["list", "--names"]) == 0
    assert capsys.readouterr().out == ""


def test_rm_removes_the_others_when_a_name_is_unknown(two, capsys):
    assert main(["rm", "nothing-like-it", "kept"]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("nanollama: error: there is no model 'nothing-like-it'")
    assert captured.out.startswith("removed kept:latest")


def test_rm_deletes_a_file_that_was_not_fetched_only_when_told_to(two, capsys):
    elsewhere, _ = two
    assert main(["rm", "--delete-file", "mine"]) == 0
    assert not elsewhere.exists()


def test_cp_gives_a_second_name_and_takes_none_without_force(two, capsys):
    assert main(["cp", "kept", "again:v1"]) == 0
    assert capsys.readouterr().out == "again:v1 is a copy of kept:latest; the files are shared\n"
    assert main(["cp", "kept", "mine"]) == 2
    assert "--force" in capsys.readouterr().err
    assert main(["cp", "--force", "kept", "mine"]) == 0


def test_path_prints_the_path_alone(two, capsys):
    assert main(["path", "KEPT"]) == 0
    assert capsys.readouterr().out == f"{two[1]}\n"


def test_path_of_a_model_whose_file_is_missing_says_what_to_do(two, capsys):
    two[1].unlink()
    for command in (["path", "kept"], ["cp", "kept", "new"], ["show", "kept"], ["bench", "kept"]):
        assert main(command) == 1
        assert "nanollama verify --repair kept:latest" in capsys.readouterr().err


def test_list_tells_which_models_it_leaves_out(two, capsys):
    two[1].unlink()
    assert main(["list"]) == 0
    captured = capsys.readouterr()
    assert "kept" not in captured.out
    (line,) = captured.err.splitlines()
    assert line == "nanollama: left out: kept:latest; 'nanollama verify' says why"


def test_a_copy_needs_a_name_of_its_own(with_smollm2, capsys):
    for target in ("smollm2", "smollm2:135m"):
        assert main(["cp", "smollm2", target]) == 2
        assert "are the same model" in capsys.readouterr().err
    assert main(["cp", "smollm2", "mine"]) == 0
    assert capsys.readouterr().out == "mine:latest is a copy of smollm2:135m; the files are shared\n"


@pytest.mark.parametrize("command", ["rm", "path", "verify"])
def test_commands_over_what_is_here_point_to_list(command, with_smollm2, capsys):
    assert main([command, "zzzzzz"]) == 1
    assert "there is no model 'zzzzzz" in (said := capsys.readouterr().err)
    assert "on this machine: 'nanollama list' shows what is there" in said


def test_a_damaged_register_is_said_once_and_does_not_stop_a_command(two, data_home, capsys):
    (data_home / "nanollama/models/models.json").write_bytes(b"{")
    assert main(["list", "--names"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "mine:latest\nkept:latest\n"
    assert captured.err == "nanollama: models.json is damaged; its copy models.json.bak is used\n"
    assert main(["show", "kepd"]) == 1
    assert capsys.readouterr().err.count("is damaged") == 1
