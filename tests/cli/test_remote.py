"""``run --server``: which server is meant, what is sent to it, and that the answer is that of a local run."""

import io
import json
import os
import re
import select
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from nanollama.cli.main import main
from nanollama.cli.remote import connect, server_address, server_of_run, with_address
from nanollama.cli.repl import Repl
from nanollama.client import Address
from nanollama.errors import UsageError
from nanollama.sampling.params import DEFAULTS
from nanollama.store.recipe import Recipe
from server.scripted import ScriptedSource
from server.worlds import LiveServer

HEAVY = ("torch", "numpy", "tokenizers", "jinja2", "rich", "prompt_toolkit", "httpx", "nanollama.llm")
RECIPE = Recipe(template="{{ messages }}", system="Be Mario.", parameters={"top_k": 7, "stop": ("END",)})


@pytest.fixture(scope="module")
def live():
    """A server with a model that has a template, one that has none, and one with a recipe."""
    source = ScriptedSource(["chatty", "plain", "mario"])
    source.found["chatty"] = replace(source.found["chatty"], recipe=Recipe(template="{{ messages }}"))
    source.found["mario"] = replace(source.found["mario"], recipe=RECIPE)
    with LiveServer(source=source) as server:
        yield server


@pytest.fixture
def run(live, monkeypatch, capsys):
    """Exit code, standard output and standard error of ``nanollama run`` with ``live`` as its server."""

    def run(*argv):
        code = main(["run", *argv, f"--server={live.url}"])
        return code, *capsys.readouterr()

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    return run


def session(model, screen, *entries):
    """A session of ``entries`` with a model of the server."""
    script = iter(entries)

    def read():
        if (entry := next(script, None)) is None:
            raise EOFError
        return entry

    assert Repl(model, screen.terminal, chat=True, system=None, generation={}).run(read) == 0


@pytest.mark.parametrize(
    ("argv", "meant"),
    [
        (["--server"], ["--server="]),
        (["--server", "smollm2", "hi"], ["--server=", "smollm2", "hi"]),
        (["gemma3:270m", "--server", "Hello, you!"], ["gemma3:270m", "--server=", "Hello, you!"]),
        (["--server", "--json"], ["--server=", "--json"]),
        (["--server", "gemma3:270m"], ["--server=", "gemma3:270m"]),
        (["--server", "localhost", "x"], ["--server=localhost", "x"]),
        (["--server", "localhost:1", "x"], ["--server=localhost:1", "x"]),
        (["--server", "10.0.0.1:1", "x"], ["--server=10.0.0.1:1", "x"]),
        (["--server", "10.0.0.1", "x"], ["--server=10.0.0.1", "x"]),
        (["--server", "box:8000", "x"], ["--server=box:8000", "x"]),
        (["--server", "[::1]:8000", "x"], ["--server=[::1]:8000", "x"]),
        (["--server", "http://box/", "x"], ["--server=http://box/", "x"]),
        (["--server=box", "x"], ["--server=box", "x"]),
        (["x", "--", "--server", "localhost"], ["x", "--", "--server", "localhost"]),
        (["--server", "--", "localhost"], ["--server=", "--", "localhost"]),
    ],
)
def test_a_word_after_the_flag_is_its_address_only_if_it_looks_like_one(argv, meant):
    assert with_address(argv) == meant


@pytest.mark.parametrize(
    ("given", "environ", "url"),
    [
        (None, {}, None),
        (None, {"NANOLLAMA_HOST": ""}, None),
        (None, {"OLLAMA_HOST": "box"}, None),
        (None, {"NANOLLAMA_HOST": "0.0.0.0"}, "http://127.0.0.1:8000"),
        ("", {}, "http://127.0.0.1:8000"),
        ("", {"OLLAMA_HOST": "box"}, "http://box:11434"),
        ("", {"OLLAMA_HOST": "box", "NANOLLAMA_HOST": ":81"}, "http://127.0.0.1:81"),
        ("other:82", {"NANOLLAMA_HOST": ":81"}, "http://other:82"),
    ],
)
def test_the_flag_comes_before_the_environment_and_our_variable_before_ollamas(given, environ, url):
    found = server_of_run(given, environ)
    assert (found and str(found)) == url


@pytest.mark.parametrize("variable", ["NANOLLAMA_HOST", "OLLAMA_HOST"])
def test_a_variable_that_is_no_address_is_named(variable):
    with pytest.raises(UsageError, match=f"{variable} is 'http://x/y'; expected an address such as"):
        server_address("", {variable: "http://x/y"})


def test_an_answer_streams_and_its_timings_follow(run):
    code, out, err = run("chatty", "tokens=3")
    assert (code, out) == (0, "abc\n")
    assert err == "[prefill: 6 tok @ 600 t/s + 2 cached | decode: 3 tok @ 300 t/s]\n"


def test_what_ends_an_answer_early_is_said(run):
    assert "[stopped: max tokens reached]" in run("chatty", "tokens=9", "--max-tokens", "2")[2]


def test_every_option_reaches_the_model_and_the_rest_has_our_defaults(run, live):
    line = (
        "--system S --max-tokens 3 --temp 0.5 --top-k 3 --min-p 0.1 --repeat-last-n -1 "
        "--presence-penalty -0.5 --frequency-penalty 2 --seed -1 --stop A --stop B --context-policy error "
        "--ctx 64"
    )
    assert run("chatty", "tokens=5", *line.split())[1] == "abc\n"
    call = live.source.models["chatty"].calls[-1]
    turns = [{"role": "system", "content": "S"}, {"role": "user", "content": "tokens=5"}]
    assert call["prompt"] == turns
    wanted = {
        "max_tokens": 3,
        "temperature": 0.5,
        "top_k": 3,
        "top_p": DEFAULTS["top_p"],
        "min_p": 0.1,
        "repeat_penalty": DEFAULTS["repeat_penalty"],
        "repeat_last_n": -1,
        "presence_penalty": -0.5,
        "frequency_penalty": 2.0,
        "seed": 2**64 - 1,
        "stop": ("A", "B"),
        "context_policy": "error",
        "n_ctx": 64,
    }
    assert {name: call[name] for name in wanted} == wanted


def test_the_models_own_settings_are_not_overruled(run, live):
    run("mario", "tokens=1")
    call = live.source.models["mario"].calls[-1]
    assert call["prompt"] == [{"role": "user", "content": "tokens=1"}]
    assert call.get("top_k") != DEFAULTS["top_k"]
    assert call["repeat_penalty"] == DEFAULTS["repeat_penalty"]


@pytest.mark.parametrize("argv", [["chatty", "tokens=2", "--raw"], ["plain", "tokens=2"]])
def test_a_text_is_completed_without_a_template(run, live, argv):
    code, out, err = run(*argv)
    assert (code, out) == (0, "ab\n")
    if argv[-1] == "--raw":
        assert live.source.models["chatty"].calls[-1]["prompt"] == "tokens=2"
    assert ("has no chat template" in err) == (argv[0] == "plain")


def test_json_has_the_fields_of_a_local_run(run):
    facts = json.loads(run("chatty", "tokens=2", "--json")[1])
    assert facts["timings"].pop("time_to_first_token_s") > 0
    assert facts["timings"].pop("load_s") > 0
    assert facts == {
        "model": "chatty",
        "text": "ab",
        "token_ids": [97, 98, 256],
        "finish_reason": "stop",
        "prompt_tokens": 8,
        "timings": {
            "prefill_tokens": 6,
            "prefill_s": 0.01,
            "prefill_tok_s": 600.0,
            "decode_tokens": 2,
            "decode_s": 0.01,
            "decode_tok_s": 200.0,
        },
        "dropped_messages": 0,
        "dropped_tokens": 0,
    }


@pytest.mark.parametrize(
    ("option", "code", "said"),
    [
        (["--threads", "2"], 2, "--threads is for loading a model, which the server at http://"),
        (["--device", "cpu"], 2, "--device is for loading"),
        (["--backend", "torch"], 2, "--backend is for loading"),
        (["--dtype", "float32"], 2, "--dtype is for loading"),
        (["--quantize", "q8"], 2, "--quantize is for loading"),
        (["--logit-bias", "3=-1"], 2, "--logit-bias can't be sent to a server"),
        (["--ctx", "5000"], 2, "takes at most|takes 8 to"),
    ],
)
def test_what_belongs_to_the_server_is_refused_by_name(run, option, code, said):
    got, out, err = run("chatty", "hi", *option)
    assert (got, out) == (code, "")
    assert re.search(said, err)


def test_a_batch_does_not_go_to_a_server(capsys):
    assert main(["--batch-file", "x", "--server"]) == 2
    assert "--server does not go with --batch-file" in capsys.readouterr().err


def test_a_session_sends_its_turns_and_survives_errors(live, screen):
    model = connect(Address("127.0.0.1", live.port), "mario", None, screen.terminal)
    biased = ["/set parameter logit_bias 3=-1", "tokens=2", "/set parameter logit_bias default"]
    session(model, screen, "tokens=1", "refuse", *biased, "tokens=3", "/show")
    assert screen.out == "a\nabc\n"
    assert "error: the template refused the messages" in screen.err
    assert "error: --logit-bias can't be sent" in screen.err
    contents = [each["content"] for each in live.source.models["mario"].calls[-1]["prompt"]]
    assert contents == ["Be Mario.", "tokens=1", "a", "tokens=3"]
    assert "[mario | cpu on the server | context 2000 tokens | /help" in screen.err
    assert re.search(rf"from +{live.url}\n", screen.err)
    assert re.search(r"system +Be Mario.\n", screen.err)


def test_a_session_can_go_without_the_models_own_system_prompt(live, screen):
    model = connect(Address("127.0.0.1", live.port), "mario", 100, screen.terminal)
    session(model, screen, "/system off", "tokens=1")
    call = live.source.models["mario"].calls[-1]
    assert call["prompt"][0] == {"role": "system", "content": ""}
    assert call["n_ctx"] == 100


PROBE = """
import sys
from nanollama.cli.main import main
code = main(sys.argv[2:])
print(code, [name for name in sys.argv[1].split(",") if name in sys.modules], file=sys.stderr)
"""


@pytest.mark.parametrize("command", [["run", "chatty", "tokens=1"], ["ps"]])
def test_nothing_heavy_is_imported_to_ask_a_server(live, command):
    argv = [sys.executable, "-c", PROBE, ",".join(HEAVY), *command, f"--server={live.url}"]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "0 []"


def test_ctrl_c_ends_the_answer_here_and_on_the_server(live):
    argv = [sys.executable, "-m", "nanollama", "run", "chatty", "tokens=9 hang=4", f"--server={live.url}"]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            text = b""
            while len(text) < 4:
                assert select.select([process.stdout], [], [], 60)[0]
                text += os.read(process.stdout.fileno(), 100)
            assert not live.quiet
            process.send_signal(signal.SIGINT)
            assert text + process.stdout.read() == b"abcd\n"
            assert process.wait(60) == 130
        finally:
            process.kill()
    assert live.becomes_quiet()


@pytest.mark.model
def test_a_real_server_gives_the_text_that_a_local_run_gives(stories_path, tmp_path):
    nanollama = [sys.executable, "-m", "nanollama"]
    serve = [*nanollama, "serve", str(stories_path), "--port", "0"]
    ask = [*nanollama, "--prompt", "Once upon a time", "--temp", "0", "--max-tokens", "30"]
    ask += ["--model", str(stories_path)]
    environment = os.environ | {"XDG_DATA_HOME": str(tmp_path)}
    with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True, env=environment) as server:
        try:
            assert server.stdout is not None
            (url,) = re.findall(r"http://\S+", server.stdout.readline())
            local, remote = (
                subprocess.run(
                    [*ask, *more],
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    text=True,
                    check=True,
                    env=environment,
                    timeout=120,
                )
                for more in ([], [f"--server={url}"])
            )
        finally:
            server.terminate()
            server.wait(60)
    assert "little girl" in local.stdout
    assert remote.stdout == local.stdout
    form = re.compile(r"@ [0-9.]+ t/s")
    loaded, _, said = local.stderr.partition("\n")
    assert loaded.startswith("Loaded ")
    assert form.sub("@", remote.stderr) == form.sub("@", said)
