import shutil
import subprocess
import sys

import pytest

from models import make_gguf
from nanollama.cli.completion import script
from nanollama.cli.main import main
from nanollama.store.names import ModelName
from nanollama.store.store import Store


@pytest.fixture
def shell_home(tmp_path, monkeypatch):
    """A store with two models, and a ``nanollama`` that a shell can call."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    for name in ("smol:1b", "smol:2b", "other"):
        path = make_gguf(tmp_path / f"{name.replace(':', '-')}.gguf")
        Store().import_path(str(path), ModelName.parse(name))
    program = tmp_path / "bin/nanollama"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m nanollama "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    return tmp_path


def completed(line, capsys):
    """What bash offers for ``line``."""
    assert main(["completion", "bash"]) == 0
    text = capsys.readouterr().out
    words = line.split(" ")
    text += (
        f"COMP_LINE={line!r} COMP_POINT={len(line)} COMP_WORDS=({' '.join(map(repr, words))}) "
        f"COMP_CWORD={len(words) - 1}\n"
        "_nanollama\nprintf '%s\\n' \"${COMPREPLY[@]}\"\n"
    )
    done = subprocess.run(["bash", "--norc"], input=text, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("nanollama li", ["list"]),
        ("nanollama rm --del", ["--delete-file"]),
        ("nanollama show oth", ["other:latest"]),
        ("nanollama show smol:", ["2b", "1b"]),
        ("nanollama show smol:2", ["2b"]),
        ("nanollama completion f", ["fish"]),
        ("nanollama du oth", []),
    ],
)
def test_bash_completes_commands_options_and_names(line, offered, shell_home, capsys):
    assert sorted(completed(line, capsys)) == sorted(offered)


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_other_shells_know_the_commands_and_ask_for_the_names(shell, capsys):
    assert main(["completion", shell]) == 0
    text = capsys.readouterr().out
    assert "nanollama list --names" in text
    for word in ("quantize", "delete-file", "bash zsh fish"):
        assert word in text
    if program := shutil.which(shell):
        subprocess.run([program, "-n"], input=text, text=True, check=True, timeout=60)


def test_another_shell_is_refused(capsys):
    assert main(["completion", "tcsh"]) == 2


def test_a_script_has_only_commands_that_there_are():
    assert "stop" not in script("fish", {"run": ["--seed"]})
