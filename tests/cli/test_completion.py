import os
import pty
import select
import shutil
import subprocess
import sys
import time

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


def with_files(home):
    """A folder with one file."""
    (home / "work").mkdir()
    (home / "work/weights.gguf").touch()
    return home / "work"


SETUP = {
    "bash": (
        "eval \"$(nanollama completion bash)\"; bind 'set bell-style none'\n"
        "shown() { printf '%s\\n' \"$READLINE_LINE\" > line; }; bind -x '\"\\C-x\": shown'\n"
    ),
    "zsh": (
        'autoload -Uz compinit && compinit -u -d dump; eval "$(nanollama completion zsh)"\n'
        'shown() { print -r -- "$BUFFER" > line }; zle -N shown; bindkey "^X" shown; unsetopt beep\n'
    ),
}
START = {"bash": ["bash", "--norc", "-i"], "zsh": ["zsh", "-f", "-i"]}


class Shell:
    """An interactive bash or zsh behind a terminal, into which a person types and presses Tab."""

    def __init__(self, name, home):
        self.line = home / "line"
        pid, self.terminal = pty.fork()
        if pid == 0:
            os.chdir(home)
            environ = {
                **os.environ,
                "HOME": str(home),
                "TERM": "dumb",
                "PYTHONPATH": os.pathsep.join(sys.path),
            }
            os.execvpe(START[name][0], START[name], environ)
        self.pid = pid
        self.send(SETUP[name])
        self.send("echo 1 > rea" + "dy\n")
        self.wait(home / "ready")

    def send(self, text):
        os.write(self.terminal, text.encode())

    def wait(self, path):
        """Reads what the shell prints, so that it never waits, until ``path`` is there and whole."""
        for _ in range(1500):
            if select.select([self.terminal], [], [], 0.02)[0]:
                os.read(self.terminal, 65536)
            elif path.exists() and path.read_text().endswith("\n"):
                return path.read_text().removesuffix("\n")
        raise AssertionError(f"{path} did not come")

    def completed(self, typed):
        """What stands in the line after Tab."""
        self.send(f"\x15{typed}\t\x18")
        text = self.wait(self.line)
        self.line.unlink()
        return text

    def close(self):
        os.close(self.terminal)  # which hangs up
        for _ in range(500):
            if os.waitpid(self.pid, os.WNOHANG)[0]:
                return
            time.sleep(0.01)
        raise AssertionError("the shell has not ended")


@pytest.mark.parametrize("name", ["bash", "zsh"])
def test_tab_in_a_shell_completes_commands_options_names_and_files(name, shell_home):
    if not shutil.which(name):
        pytest.skip(f"{name} is not there")
    shell = Shell(name, with_files(shell_home))
    try:
        for typed, line in {
            "qua": "quantize ",
            "rm --del": "rm --delete-file ",
            "show oth": "show other:latest ",
            "rm smo": "rm smol:",
            "rm smol:1": "rm smol:1b ",
            "cp smol:1b oth": "cp smol:1b other:latest ",
            "completion f": "completion fish ",
            "import wei": "import weights.gguf ",
            "run ./wei": "run ./weights.gguf ",
            "create x -f wei": "create x -f weights.gguf ",
        }.items():
            assert shell.completed(f"nanollama {typed}") == f"nanollama {line}"
    finally:
        shell.close()


@pytest.mark.skipif(not shutil.which("fish"), reason="fish is not there")
def test_fish_offers_commands_options_names_and_files(shell_home, monkeypatch, capsys):
    assert main(["completion", "fish"]) == 0
    text = capsys.readouterr().out
    work = with_files(shell_home)
    monkeypatch.setenv("HOME", str(work))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    lines = {
        "qua": ["quantize"],
        "rm --del": ["--delete-file"],
        "rm smol:": ["smol:1b", "smol:2b"],
        "rm wei": [],
        "show oth": ["other:latest"],
        "completion f": ["fish"],
        "du ": [],
        "import wei": ["weights.gguf"],
        "run list --na": [],
        "create x -f wei": ["weights.gguf"],
    }
    text += "".join(f"echo =\ncomplete -C 'nanollama {line}'\n" for line in lines)
    done = subprocess.run(
        ["fish", "--no-config"], input=text, capture_output=True, text=True, cwd=work, timeout=60
    )
    assert done.stderr == ""
    offered = [sorted(part.split()) for part in done.stdout.split("=\n")[1:]]
    assert dict(zip(lines, offered, strict=True)) == lines


def test_another_shell_is_refused(capsys):
    assert main(["completion", "tcsh"]) == 2


def test_a_script_has_only_commands_that_there_are():
    assert "stop" not in script("fish", {"run": ["--seed"]})
