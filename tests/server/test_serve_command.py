"""The command: its flags, what it prints, and the whole program with a real model."""

import argparse
import os
import signal
import subprocess
import sys

import httpx
import openai
import pytest

from nanollama.cli.main import Parser
from nanollama.cli.options import Expected
from nanollama.cli.serve import add_serve_parser, announce, duration, serve_command, serve_settings
from nanollama.errors import ModelNotFoundError, UsageError
from nanollama.server.settings import ServerSettings


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
    words += " --ctx 512 --dtype float16 --allow-host box --allow-origin https://a.example --insecure"
    assert settings_of(*words.split()) == ServerSettings(
        model="smollm2",
        host="0.0.0.0",
        port=9,
        api_keys=("k1", "k2", "k3"),
        insecure=True,
        max_seqs=4,
        max_queue=0,
        keep_alive_s=7200.0,
        loading={"n_ctx": 512, "dtype": "float16"},
        hosts=("box",),
        origins=("https://a.example",),
    )


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
        ("127.0.0.1", ["http://127.0.0.1:8000", "http://localhost:8000/v1/chat/completions"]),
        ("::1", ["http://[::1]:8000", "http://localhost:8000/v1/chat/completions"]),
        ("0.0.0.0", ["http://0.0.0.0:8000", "http://0.0.0.0:8000/v1/chat/completions"]),
    ],
)
def test_it_says_where_it_is(capsys, host, lines):
    announce(ServerSettings(host=host, insecure=True), 8000)
    assert capsys.readouterr().out.splitlines() == [
        f"Starting server on {lines[0]}",
        f"OpenAI-compatible API: {lines[1]}",
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
        lines = [server.stdout.readline() for _ in range(2)]
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
    assert reply.usage.prompt_tokens_details.cached_tokens > 100


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
