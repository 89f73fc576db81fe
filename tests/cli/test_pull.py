"""``nanollama pull`` as a command, and killed: a real process against a hub on this machine."""

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest

from hub_server import LocalHub
from nanollama.cli.main import main
from nanollama.store.names import ModelName
from nanollama.store.store import Store

GGUF = b"GGUF\x03" + bytes(19) + random.Random(5).randbytes(1_200_000)
TARGET = "hf.co/org/toy"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    hub = LocalHub()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    yield hub
    hub.close()


def test_several_models_are_pulled_in_turn(hub, capsys):
    hub.publish("org/toy", {"toy-Q4_K_M.gguf": GGUF})
    hub.publish("org/other", {"other-Q4_K_M.gguf": GGUF})
    assert main(["pull", TARGET, "hf.co/org/other"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("hf.co/org/toy:latest is complete and verified: ")
    assert second.startswith("hf.co/org/other:latest is complete and verified: ")
    for line in (first, second):
        with open(line.partition(": ")[2], "rb") as file:
            assert file.read() == GGUF


def test_one_that_fails_does_not_keep_the_others_from_being_fetched(hub, capsys):
    hub.publish("org/toy", {"toy-Q4_K_M.gguf": GGUF})
    assert main(["pull", "hf.co/org/gone", "no such name", TARGET]) == 2
    captured = capsys.readouterr()
    assert captured.out.startswith("hf.co/org/toy:latest is complete")
    errors = [line for line in captured.err.splitlines() if "error: " in line]
    assert "hf.co/org/gone:latest is not there" in errors[0]
    assert "'no such name'" in errors[1]
    assert len(errors) == 2


def test_a_file_at_an_address_is_pulled(hub, capsys):
    hub.files["mine-Q8_0.gguf"] = GGUF
    assert main(["pull", f"{hub.url}/models/mine-Q8_0.gguf"]) == 0
    assert f"127.0.0.1:{hub.port}/models/mine:q8_0 is complete" in capsys.readouterr().out


def test_what_is_no_whole_model_is_not_kept_where_no_digest_could_tell(hub, capsys, tmp_path):
    hub.files["mine.gguf"] = b"GGUF\x03\0\0\0\x09" + bytes(99)
    assert main(["pull", f"{hub.url}/mine.gguf"]) == 1
    assert "/mine.gguf sends is no whole model: the number of tensors is 9" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.gguf*"))
    assert Store().list() == []


def test_a_new_version_on_the_hub_is_fetched_by_the_next_pull(hub, capsys):
    hub.publish("org/toy", {"toy-Q4_K_M.gguf": GGUF})
    main(["pull", TARGET])
    newer = GGUF[:-1] + b"!"
    hub.publish("org/toy", {"toy-Q4_K_M.gguf": newer})
    assert main(["pull", TARGET]) == 0
    path = capsys.readouterr().out.splitlines()[-1].partition(": ")[2]
    with open(path, "rb") as file:
        assert file.read() == newer


PULLS = """
import os, sys
import httpx  # what takes long to import is there before the first pull
from nanollama.cli import main
from nanollama.store import download, plans
settings = download.DownloadSettings
download.DownloadSettings = lambda **given: settings(connections=4, piece_bytes=1 << 17, **given)
for _ in sys.stdin:
    if not (child := os.fork()):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # half a line of it must not stand before "end"
        os._exit(main.main(["pull", *sys.argv[1:]]))
    print("pid", child, flush=True)
    print("end", os.waitpid(child, 0)[1], flush=True)
"""
"""Runs the real command in a process of its own for each line it reads, in pieces so small that also a small
file comes over several connections."""


class Pulls:
    """Pulls that can be killed: 0.5 seconds of imports are spent once and not for each of them."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-c", PULLS, TARGET],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            bufsize=1,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.communicate(timeout=30)

    def start(self):
        self.process.stdin.write("\n")
        return int(self._read("pid "))

    def wait(self):
        """The status of the pull that was started last: 0 if it succeeded."""
        return int(self._read("end "))

    def _read(self, prefix):
        while not (line := self.process.stdout.readline()).startswith(prefix):
            assert line, "the process that runs the pulls has ended"
        return line.removeprefix(prefix)


KILLS = 15
SINGLE = {"toy-Q4_K_M.gguf": GGUF}
FOLDER = {
    "config.json": b"{}",
    "tokenizer.json": b"{}" * 1000,
    "model.safetensors.index.json": b"{}",
    "model-00001-of-00002.safetensors": GGUF[:500_000],
    "model-00002-of-00002.safetensors": GGUF[500_000:],
}


@pytest.mark.parametrize("files", [SINGLE, FOLDER], ids=["gguf", "safetensors"])
def test_a_pull_killed_at_random_points_shows_no_model_until_the_same_command_finishes(files, hub, tmp_path):
    hub.publish("org/toy", files)
    hub.pace_s = 0.001
    chance = random.Random(len(files))
    store, name = Store(tmp_path / "nanollama/models"), ModelName.parse(TARGET)
    killed = 0
    with Pulls() as pulls:
        while killed < KILLS:
            pid = pulls.start()
            wait_for_a_random_moment(chance, hub)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            killed += pulls.wait() == signal.SIGKILL
            record = store.find(name)
            assert store.list() == ([record] if record else [])
            if record:
                assert contents_of(record) == files
                store.remove(name)
        pulls.start()
        assert pulls.wait() == 0
    record = store.find(name)
    assert contents_of(record) == files
    left = {path.name for path in store.root.rglob("*") if path.is_file()} - set(files)
    assert not [name for name in left if ".part" in name or name.endswith(".new")]


def wait_for_a_random_moment(chance, hub):
    """A few requests from now, or soon if there are no more, and a little later."""
    wanted = len(hub.requests) + chance.randrange(5)
    deadline = time.monotonic() + 0.3
    while len(hub.requests) < wanted and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(chance.random() * 0.04)


def contents_of(record):
    return {file.name: path.read_bytes() for path, file in zip(record.paths, record.files, strict=True)}


def test_the_parser_can_be_added_to_any_argparse_program():
    from nanollama.cli.pull import add_pull_parser

    subparsers = (parser := argparse.ArgumentParser()).add_subparsers()
    add_pull_parser(subparsers)
    assert parser.parse_args(["pull", "smollm2", "qwen3"]).models == ["smollm2", "qwen3"]
