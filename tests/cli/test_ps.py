"""``ps`` and ``stop``, asked of the real application over scripted models."""

import io
import json
import socket
import sys

import pytest

from nanollama.cli.main import main
from nanollama.cli.ps import processor_text, until_text
from nanollama.client import Running
from server.scripted import ScriptedSource
from server.worlds import LiveServer


@pytest.fixture(scope="module")
def live():
    with LiveServer(source=ScriptedSource(["scripted", "other"])) as server:
        yield server


@pytest.fixture
def nanollama(live, monkeypatch, capsys):
    """Exit code, standard output and standard error of a command with ``live`` as its server."""

    def nanollama(*argv):
        code = main(argv)
        return code, *capsys.readouterr()

    monkeypatch.setenv("NANOLLAMA_HOST", f"127.0.0.1:{live.port}")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    return nanollama


def test_ps_shows_what_a_run_has_loaded_until_it_is_stopped(nanollama):
    assert nanollama("ps") == (0, "NAME    ID    SIZE    PROCESSOR    CONTEXT    UNTIL\n", "")
    assert nanollama("run", "scripted", "tokens=2")[:2] == (0, "ab\n")
    code, out, _ = nanollama("ps")
    heading, line = out.splitlines()
    assert (code, heading.split()) == (0, ["NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL"])
    name, short_id, *rest = line.split("    ")
    assert (name, len(short_id)) == ("scripted", 12)
    assert [each.strip() for each in rest if each] == ["1 kB", "100% CPU", "2000", "4 minutes from now"]
    (entry,) = json.loads(nanollama("ps", "--json")[1])
    assert entry["name"] == "scripted"
    assert entry["digest"].startswith(short_id)
    assert nanollama("stop", "scripted") == (0, "stopped scripted\n", "")
    assert nanollama("ps", "--json")[1] == "[]\n"


@pytest.mark.parametrize(
    ("model", "said"),
    [("other", "other is not in the memory of"), ("nope", "has no model nope: nanollama ps shows")],
)
def test_what_is_not_there_is_not_stopped(nanollama, model, said):
    code, out, err = nanollama("stop", model)
    assert (code, out) == (1, "")
    assert said in err


def test_a_model_in_use_is_stopped_when_its_answer_is_complete(nanollama, live):
    nanollama("run", "scripted", "tokens=1")
    with live.ollama() as client:
        stream = client.generate("scripted", "tokens=3 delay=0.2", stream=True)
        first = next(stream).response
        assert nanollama("stop", "scripted")[0] == 0
        assert first + "".join(part.response for part in stream) == "abc"
    assert live.becomes_quiet()


@pytest.mark.parametrize("argv", [["ps"], ["ps", "--json"], ["stop", "scripted"]])
def test_without_a_server_the_sentence_says_how_to_start_one(nanollama, argv):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    code, out, err = nanollama(*argv, "--server", f"127.0.0.1:{port}")
    assert (code, out) == (1, "")
    assert f"no server answers at http://127.0.0.1:{port}: start one with nanollama serve" in err


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "Forever"),
        (299.9, "4 minutes from now"),
        (59.0, "59 seconds from now"),
        (7300.0, "2 hours from now"),
        (0.5, "Stopping..."),
        (-10.0, "Stopping..."),
    ],
)
def test_the_time_that_is_left_is_in_its_largest_unit(seconds, text):
    assert until_text(seconds) == text


@pytest.mark.parametrize(
    ("size", "on_gpu", "text"),
    [(100, 0, "100% CPU"), (100, 100, "100% GPU"), (100, 52, "48%/52% CPU/GPU"), (0, 0, "100% CPU")],
)
def test_the_processor_is_written_as_ollama_does(size, on_gpu, text):
    assert processor_text(Running("m", "", size, on_gpu, 8, None)) == text
