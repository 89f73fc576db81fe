"""The command: its flags, what it prints, and the whole program with a real model."""

import argparse
import os
import signal
import subprocess
import sys

import httpx
import ollama
import openai
import pytest

from nanollama.cli.main import Parser
from nanollama.cli.options import Expected
from nanollama.cli.serve import add_serve_parser, announce, duration, serve_command, serve_settings
from nanollama.engine.children import MIN_COMMON
from nanollama.errors import ModelNotFoundError, UsageError
from nanollama.server.environment import VARIABLES
from nanollama.server.settings import ServerSettings


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    """What the machine's environment sets is not part of these tests."""
    for variable in VARIABLES:
        monkeypatch.delenv(variable.name, raising=False)
        monkeypatch.delenv(variable.ollama, raising=False)


def settings_of(*argv):
    top = argparse.ArgumentParser()
    subparsers = top.add_subparsers(parser_class=Parser)
    add_serve_parser(subparsers)
    args = subparsers.choices["serve"].read([*argv])
    assert args.handler is serve_command
    return serve_settings(args)


def test_without_flags_it_serves_this_machine_only(monkeypatch):
    monkeypatch.delenv("NANOLLAMA_API_KEY", raising=False)
    assert settings_of() == ServerSettings()
    assert ServerSettings().host == "127.0.0.1"
    assert ServerSettings().port == 8000


def test_every_flag_arrives(monkeypatch):
    monkeypatch.setenv("NANOLLAMA_API_KEY", "k3")
    words = (
        "smollm2 --host 0.0.0.0 --port 9 --api-key k1 --api-key k2 --max-seqs 4 --max-queue 0 --keep-alive 2h"
    )
    words += " --max-models 2 --ctx 512 --dtype float16 --allow-host box --allow-origin https://a.example"
    words += " --insecure"
    assert settings_of(*words.split()) == ServerSettings(
        model="smollm2",
        host="0.0.0.0",
        port=9,
        api_keys=("k1", "k2", "k3"),
        insecure=True,
        max_seqs=4,
        max_queue=0,
        max_models=2,
        keep_alive_s=7200.0,
        loading={"n_ctx": 512, "dtype": "float16"},
        hosts=("box",),
        origins=("https://a.example",),
    )


def test_a_variable_sets_what_no_flag_sets(monkeypatch):
    for name, value in (
        ("OLLAMA_HOST", "127.0.0.1"),
        ("OLLAMA_KEEP_ALIVE", "-1"),
        ("OLLAMA_ORIGINS", "app://*,https://a.example"),
        ("OLLAMA_CONTEXT_LENGTH", "1024"),
        ("OLLAMA_MAX_QUEUE", "7"),
    ):
        monkeypatch.setenv(name, value)
    settings = settings_of()
    assert (settings.port, settings.keep_alive_s, settings.max_queue) == (11434, None, 7)
    assert settings.loading == {"n_ctx": 1024}
    assert settings.origins == ("app://*", "https://a.example")
    flagged = settings_of("--port", "1", "--ctx", "64", "--allow-origin", "https://b.example")
    assert (flagged.port, flagged.loading, flagged.origins) == (1, {"n_ctx": 64}, ("https://b.example",))


def test_a_variable_that_opens_the_server_needs_a_key_as_well(monkeypatch):
    monkeypatch.setenv("OLLAMA_HOST", "0.0.0.0")
    with pytest.raises(UsageError, match="--api-key"):
        settings_of()


@pytest.mark.parametrize(
    "argv",
    [
        ("--port", "65536"),
        ("--port", "x"),
        ("--max-seqs", "0"),
        ("--keep-alive", "5 minutes"),
        ("--keep-alive", "-1"),
        ("--host", ""),
        ("--host", "0.0.0.0"),
        ("--allow-origin", "example.org"),
        ("--api-key", ""),
        ("--speed", "1"),
        ("a", "b"),
    ],
    ids=str,
)
def test_a_wrong_flag_is_an_error_with_a_sentence(argv, monkeypatch):
    monkeypatch.delenv("NANOLLAMA_API_KEY", raising=False)
    with pytest.raises(UsageError):
        settings_of(*argv)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("90", 90), ("30s", 30), ("5m", 300), ("2h", 7200), ("forever", float("inf"))],
)
def test_times_are_read_with_their_unit(text, seconds):
    assert duration(text) == seconds
    with pytest.raises(Expected):
        duration(text + "x")


def test_forever_is_for_ever():
    assert settings_of("--keep-alive", "forever").keep_alive_s is None


@pytest.mark.parametrize(
    ("host", "lines"),
    [
        ("127.0.0.1", ["http://127.0.0.1:8000", "http://localhost:8000"]),
        ("::1", ["http://[::1]:8000", "http://localhost:8000"]),
        ("0.0.0.0", ["http://0.0.0.0:8000", "http://0.0.0.0:8000"]),
    ],
)
def test_it_says_where_it_is(capsys, host, lines):
    announce(ServerSettings(host=host, insecure=True), 8000)
    assert capsys.readouterr().out.splitlines() == [
        f"Starting server on {lines[0]}",
        f"OpenAI-compatible API: {lines[1]}/v1/chat/completions",
        f"Ollama-compatible API: {lines[1]}/api/chat",
    ]


def test_a_model_that_does_not_exist_is_said_before_anything_starts():
    with pytest.raises(ModelNotFoundError):
        serve_command(argparse.Namespace(**vars(args_for("no-such-model"))))


def args_for(*argv):
    top = argparse.ArgumentParser()
    subparsers = top.add_subparsers(parser_class=Parser)
    add_serve_parser(subparsers)
    return subparsers.choices["serve"].read([*argv])


def test_the_parser_imports_no_server():
    slow = {"fastapi", "uvicorn", "pydantic", "torch", "prometheus_client"}
    code = f"import sys, nanollama.cli.serve; print(*{slow} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment()
    )
    assert done.stdout.split() == []


def environment():
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


SCRIPT = """
import argparse, sys
from nanollama.cli.main import Parser
from nanollama.cli.serve import add_serve_parser
subparsers = argparse.ArgumentParser().add_subparsers(parser_class=Parser)
add_serve_parser(subparsers)
args = subparsers.choices["serve"].read(sys.argv[1:])
sys.exit(args.handler(args))
"""


@pytest.fixture(scope="module")
def program(smollm2_path):
    """The program with a real model, on a port of its own."""
    command = [sys.executable, "-c", SCRIPT, str(smollm2_path), "--port", "0", "--ctx", "512"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as server:
        lines = [server.stdout.readline() for _ in range(3)]
        assert lines[0].startswith("Starting server on http://127.0.0.1:")
        assert lines[1].startswith("OpenAI-compatible API: http://localhost:")
        yield lines[0].split()[-1]
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) == 0


@pytest.fixture(scope="module")
def real(program):
    with openai.OpenAI(base_url=f"{program}/v1", api_key="x", max_retries=0, timeout=60) as client:
        yield client


MODEL = "SmolLM2-135M-Instruct.Q4_1"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.mark.model
def test_a_real_model_says_the_same_streamed_and_whole(real):
    options = {"model": MODEL, "messages": QUESTION, "max_tokens": 12, "seed": 3, "temperature": 0.7}
    whole = real.chat.completions.create(**options, logprobs=True, top_logprobs=2)
    stream = list(real.chat.completions.create(**options, stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == whole.choices[0].message.content != ""
    content = whole.choices[0].logprobs.content
    assert b"".join(bytes(each.bytes) for each in content).decode() == text
    assert all(each.logprob <= 0 and len(each.top_logprobs) == 2 for each in content)


@pytest.mark.model
def test_a_repeated_prompt_is_found_in_the_cache(real):
    long = [{"role": "user", "content": "Tell me about the sea. " * 30}]
    for _ in range(2):
        reply = real.chat.completions.create(model=MODEL, messages=long, max_tokens=2)
    n_computed = reply.usage.prompt_tokens - reply.usage.prompt_tokens_details.cached_tokens
    assert 1 <= n_computed <= MIN_COMMON  # the end too, which no whole block holds


@pytest.mark.model
def test_a_real_prompt_is_scored_and_continued(program, real):
    choice = real.completions.create(
        model=MODEL, prompt="The capital of France is", echo=True, logprobs=1, max_tokens=0
    ).choices[0]
    assert choice.text == "The capital of France is"
    assert len(choice.logprobs.tokens) == 5
    assert choice.logprobs.token_logprobs[0] is None
    assert choice.logprobs.token_logprobs[-1] > -1
    body = {"model": MODEL, "prompt": "The capital of France is"}
    tokens = httpx.post(f"{program}/tokenize", json=body).json()
    assert tokens["count"] == 5
    assert tokens["max_model_len"] == 512


@pytest.mark.model
@pytest.mark.parametrize("stream", [False, True])
def test_a_real_conversation_that_is_too_long_is_refused_or_shortened(real, stream):
    turns = [{"role": "user", "content": "The sea is wide. " * 60}, {"role": "assistant", "content": "Yes."}]
    messages = [*turns, *turns, *QUESTION]
    with pytest.raises(openai.BadRequestError) as refused:
        real.chat.completions.create(model=MODEL, messages=messages, max_tokens=5, stream=stream)
    assert refused.value.code == "context_length_exceeded"
    reply = real.chat.completions.create(
        model=MODEL, messages=messages, max_tokens=5, extra_body={"context_policy": "drop_oldest"}
    )
    assert reply.usage.prompt_tokens_details.dropped_messages >= 2


@pytest.mark.model
def test_real_token_ids_are_checked_against_the_vocabulary(real):
    with pytest.raises(openai.BadRequestError):
        real.completions.create(model=MODEL, prompt=[10**6])
    with pytest.raises(openai.BadRequestError):
        real.chat.completions.create(model=MODEL, messages=QUESTION, logit_bias={"1000000": 1})


@pytest.fixture(scope="module")
def llama(program):
    with ollama.Client(host=program, timeout=60) as client:
        yield client


@pytest.mark.model
def test_a_real_model_answers_ollamas_client_the_same_streamed_and_whole(llama):
    options = {"num_predict": 12, "seed": 3, "temperature": 0.7, "num_ctx": 128}
    whole = llama.chat(MODEL, QUESTION, options=options)
    parts = list(llama.chat(MODEL, QUESTION, options=options, stream=True))
    assert "".join(part.message.content for part in parts) == whole.message.content != ""
    assert whole.prompt_eval_duration > 0
    assert whole.eval_count == parts[-1].eval_count
    (running,) = llama.ps().models
    assert running.context_length == 512


@pytest.mark.model
def test_a_real_model_goes_on_from_a_context(llama):
    first = llama.generate(MODEL, "My name is Ada.", options={"num_predict": 8})
    again = llama.generate(MODEL, "What is my name?", context=first.context, options={"num_predict": 8})
    assert again.prompt_eval_count > first.prompt_eval_count
    assert again.context[: len(first.context)] == first.context


@pytest.mark.model
def test_a_real_window_may_be_narrower_and_what_it_drops_is_told(program, llama):
    turns = [{"role": "user", "content": "The sea is wide. " * 8}, {"role": "assistant", "content": "Yes."}]
    body = {"model": MODEL, "messages": [*turns, *turns, *QUESTION], "stream": False}
    body["options"] = {"num_ctx": 100, "num_predict": 4}
    assert httpx.post(f"{program}/api/chat", json=body, timeout=60).json()["dropped_messages"] >= 2
    with pytest.raises(ollama.ResponseError, match="takes at most"):
        llama.chat(MODEL, QUESTION, options={"num_ctx": 10**6})


@pytest.mark.model
def test_a_real_model_is_shown(llama):
    shown = llama.show(MODEL)
    assert shown.modelinfo["general.architecture"] == "llama"
    assert shown.details.parameter_size == "134.52M"
    assert "im_start" in shown.template
