"""``run`` and the flat form: what a command line means, and what a real model prints for each flag."""

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nanollama.cli.main import parse
from nanollama.cli.run import RunConfig, command_config, flat_config, is_model_word, run_once
from nanollama.errors import UsageError
from nanollama.types import Message

TIMING_LINE = re.compile(
    r"^\[prefill: \d+ tok @ \d+(\.\d)? t/s \| decode: \d+ tok @ \d+(\.\d)? t/s\]$", re.MULTILINE
)


@pytest.mark.parametrize(
    ("word", "is_model"),
    [
        ("smollm2", True),
        ("gemma3:270m", True),
        ("host.example/library/name:tag", True),
        ("./model.gguf", True),
        ("~/models/x", True),
        ("My Models/x y.gguf", True),
        ("What is the capital of France?", False),
        ("Hello!", False),
        ("你好", False),
        ("", False),
    ],
)
def test_a_first_word_that_cannot_be_a_model_is_a_prompt(word: str, is_model: bool) -> None:
    assert is_model_word(word) == is_model


def stdin_of(data: bytes, tty: bool = False) -> io.TextIOWrapper:
    class Input(io.TextIOWrapper):
        def isatty(self) -> bool:
            return tty

    return Input(io.BytesIO(data), encoding="utf-8")


@pytest.fixture
def config_of(monkeypatch: pytest.MonkeyPatch):
    """The RunConfig that a command line means, with ``piped`` on standard input, or with a person there."""

    def config_of(*argv: str, piped: bytes | None = None) -> RunConfig:
        monkeypatch.setattr(sys, "stdin", stdin_of(piped or b"", tty=piped is None))
        return (command_config if argv[0] == "run" else flat_config)(parse(argv))

    return config_of


def test_the_flat_form_of_the_roadmap_is_understood_as_written(config_of) -> None:
    line = (
        "--model M --device cpu --temp 0.8 --max-tokens 200 --top-k 50 --top-p 0.9 --repeat-penalty "
        "1.1 --dtype float16"
    )
    assert config_of("--prompt", "The meaning of life is", *line.split()) == RunConfig(
        model="M",
        prompt="The meaning of life is",
        interactive=False,
        chat=False,
        system=None,
        json=False,
        loading={"device": "cpu", "dtype": "float16"},
        generation={"temperature": 0.8, "max_tokens": 200, "top_k": 50, "top_p": 0.9, "repeat_penalty": 1.1},
        announces=True,
    )


def test_every_other_option_reaches_the_model(config_of) -> None:
    line = (
        "--min-p 0.1 --repeat-last-n -1 --presence-penalty -0.5 --frequency-penalty 2 --logit-bias "
        "3=-5 --logit-bias 4=-inf --seed 18446744073709551615 --stop A --stop B --context-policy "
        "error --ctx 64 --temperature 0"
    )
    config = config_of("run", "M", *line.split(), "P")
    assert config.loading == {"n_ctx": 64}
    assert config.generation == {
        "min_p": 0.1,
        "repeat_last_n": -1,
        "presence_penalty": -0.5,
        "frequency_penalty": 2.0,
        "logit_bias": {3: -5.0, 4: float("-inf")},
        "seed": 2**64 - 1,
        "stop": ("A", "B"),
        "context_policy": "error",
        "temperature": 0.0,
    }


@pytest.mark.parametrize(
    ("argv", "model", "prompt", "interactive", "chat"),
    [
        (["run"], "smollm2", None, True, True),
        (["run", "gemma3"], "gemma3", None, True, True),
        (["run", "gemma3", "Hi"], "gemma3", "Hi", False, True),
        (["run", "gemma3", "Hi", "--temp", "0", "there"], "gemma3", "Hi there", False, True),
        (["run", "Why is the sky blue?"], "smollm2", "Why is the sky blue?", False, True),
        (["run", "gemma3", "Hi", "--raw"], "gemma3", "Hi", False, False),
        (["run", "gemma3", "--", "--help"], "gemma3", "--help", False, True),
        (["--prompt", "Hi"], "smollm2", "Hi", False, False),
        (["--prompt", "Hi", "--chat"], "smollm2", "Hi", False, True),
        (["--prompt", "Hi", "--system", "Pirate"], "smollm2", "Hi", False, True),
        (["--prompt", "Hi", "--interactive"], "smollm2", "Hi", True, True),
        (["--prompt", "Hi", "--interactive", "--raw"], "smollm2", "Hi", True, False),
        (["--chat"], "smollm2", None, True, True),
        (["--interactive"], "smollm2", None, True, True),
        (["--model", "gemma3"], "gemma3", None, True, True),
    ],
)
def test_each_form_decides_between_completion_chat_and_session(
    config_of, argv, model, prompt, interactive, chat
) -> None:
    config = config_of(*argv)
    assert (config.model, config.prompt, config.interactive, config.chat) == (
        model,
        prompt,
        interactive,
        chat,
    )


@pytest.mark.parametrize(
    ("piped", "argv", "prompt"),
    [
        (b"text of a file\r\n\n", ["run", "smollm2", "Summarise this"], "text of a file\n\nSummarise this"),
        (b"just this\n", ["run", "smollm2"], "just this"),
        (b"\xef\xbb\xbfwith a mark", ["run", "smollm2"], "with a mark"),
        (b"", ["run", "smollm2", "alone"], "alone"),
        (b"before", ["--prompt", "after"], "before\n\nafter"),
        (b"before", ["--model", "M"], "before"),
    ],
)
def test_piped_text_comes_before_the_prompt(config_of, piped: bytes, argv: list[str], prompt: str) -> None:
    config = config_of(*argv, piped=piped)
    assert config.prompt == prompt
    assert not config.interactive


@pytest.mark.parametrize(
    ("piped", "argv", "message"),
    [
        (b"", ["run", "smollm2"], "the prompt is empty"),
        (b" \n", ["run", "smollm2", " "], "the prompt is empty"),
        (b"", ["--prompt", ""], "the prompt is empty"),
        (b"ab\xff", ["run", "smollm2"], "not UTF-8 text (byte 0xff at offset 2)"),
        (b"", ["run", "smollm2", "caf\udce9"], "the prompt is not valid UTF-8"),
        (b"", ["--prompt", "x", "--system", "\udce9"], "--system is not valid UTF-8"),
        (b"", ["--prompt", "x", "--raw", "--chat"], "contradict"),
        (b"", ["--prompt", "x", "--raw", "--system", "s"], "--system needs the chat template"),
        (None, ["run", "smollm2", "--json"], "--json prints one answer"),
        (b"", ["run", "m", "x", *["--stop", "a"] * 17], "16 times at most, not 17"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_loading(config_of, piped, argv, message) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        config_of(*argv, piped=piped)


def test_an_answer_is_streamed_piece_by_piece_and_its_timings_follow(scripted, screen, config_of) -> None:
    llm = scripted("Paris")
    config = config_of("run", "scripted", "Capital of France?", "--system", "Be brief.", "--temp", "0")
    assert run_once(llm, config.prompt, config, screen.terminal, chat=True) == 0
    assert screen.flushed == ["P", "Pa", "Par", "Pari", "Paris", "Paris\n"]
    assert screen.err == "[prefill: 23 tok @ 115 t/s | decode: 8 tok @ 10.0 t/s]\n"
    assert llm.asked == [[Message("user", "Capital of France?")]]
    assert llm.options == [{"system": "Be brief.", "temperature": 0.0}]


def test_json_prints_one_object_and_nothing_else(scripted, screen, config_of) -> None:
    config = config_of("run", "scripted", "x", "--json", "--max-tokens", "3")
    run_once(scripted("né!", dropped=2), config.prompt, config, screen.terminal, chat=True)
    facts = json.loads(screen.out)
    assert facts.pop("timings") == {
        "load_s": 0.5,
        "prefill_tokens": 23,
        "prefill_s": 0.2,
        "prefill_tok_s": 115.0,
        "decode_tokens": 8,
        "decode_s": 0.8,
        "decode_tok_s": 10.0,
        "time_to_first_token_s": pytest.approx(0.0, abs=10),
    }
    assert facts == {
        "model": "scripted",
        "text": "né!",
        "token_ids": [0, 1, 2],
        "finish_reason": "length",
        "prompt_tokens": 23,
        "dropped_messages": 2,
        "dropped_tokens": 406,
    }
    assert screen.out.count("\n") == 1
    assert screen.err == ""


def test_an_interrupted_answer_ends_its_line_and_the_command(scripted, screen, config_of) -> None:
    config = config_of("run", "scripted", "x")
    with pytest.raises(KeyboardInterrupt):
        run_once(scripted(("endless", 3)), config.prompt, config, screen.terminal, chat=True)
    assert screen.out == "end\n"


def nanollama(*argv: str, piped: str = "") -> subprocess.CompletedProcess[str]:
    """The real entry point in a process of its own."""
    command = [sys.executable, "-m", "nanollama", *argv]
    return subprocess.run(
        command, input=piped, capture_output=True, encoding="utf-8", timeout=120, check=False
    )


@pytest.mark.model
def test_the_roadmap_line_completes_a_text_with_a_real_model(stories_path: Path) -> None:
    options = (
        "--device cpu --temp 0.8 --max-tokens 20 --top-k 50 --top-p 0.9 --repeat-penalty 1.1 --dtype float16"
    )
    done = nanollama("--prompt", "Once upon a time", "--model", str(stories_path), *options.split())
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.strip()) > 10
    assert "Loaded 5 layers, 2" in done.stderr
    assert "K params on cpu (float16)" in done.stderr
    assert TIMING_LINE.search(done.stderr)
    assert "[stopped: max tokens reached]" in done.stderr


@pytest.mark.model
def test_every_sampling_option_is_honoured_with_piped_text_and_json(stories_path: Path) -> None:
    options = (
        "--raw --json --temperature 0 --min-p 0.05 --repeat-last-n 16 --presence-penalty 0.1 "
        "--frequency-penalty 0.1 --seed 1 --max-tokens 8 --ctx 64 --context-policy error --dtype "
        "float32 --top-k 0 --top-p 1.0 --repeat-penalty 1.0 --logit-bias 403=-inf --stop zzz"
    )
    done = nanollama("run", str(stories_path), "Lily", *options.split(), piped="Once upon a time\n")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert len(facts["token_ids"]) == 8
    assert 403 not in facts["token_ids"]
    assert facts["finish_reason"] == "length"
    assert facts["timings"]["decode_tokens"] == 7
    assert facts["timings"]["time_to_first_token_s"] > 0
    assert done.stderr == ""


@pytest.mark.model
def test_a_model_without_a_template_says_so_and_completes(stories_path: Path) -> None:
    done = nanollama("run", str(stories_path), "Once upon a time", "--temp", "0", "--stop", "girl")
    assert done.returncode == 0, done.stderr
    assert "[stories260K.gguf has no chat template: it completes the prompt as plain text]" in done.stderr
    assert "little" in done.stdout
    assert "girl" not in done.stdout


@pytest.mark.model
def test_the_flat_chat_form_uses_the_template_and_the_system_prompt(smollm2_path: Path) -> None:
    line = "--chat --temp 0 --max-tokens 24 --json --model smollm2 --system"
    done = nanollama("--prompt", "What is the capital of France?", *line.split(), "You are a pirate.")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert "Paris" in facts["text"]
    assert facts["model"] == "smollm2"
    assert facts["prompt_tokens"] > 20, "the system prompt is part of the prompt"
