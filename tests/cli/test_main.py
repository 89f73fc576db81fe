"""The entry point: what it refuses, how it says so, and what it does not import on the way."""

import io
import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from nanollama.cli.main import COMMANDS, Parser, main, wanted_parsers

HEAVY = ("torch", "numpy", "tokenizers", "jinja2", "rich", "prompt_toolkit", "httpx")

PROBE = """
import sys, json
from nanollama.cli.main import main
try:
    code = main(json.loads(sys.argv[1]))
except SystemExit as end:
    code = end.code
heavy = [name for name in json.loads(sys.argv[2]) if name in sys.modules]
print(json.dumps([code, heavy]))
"""


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["--help"], 0),
        (["run", "--help"], 0),
        (["--chat", "--help"], 0),
        ([], 0),
        (["--version"], 0),
        (["list"], 0),
        (["run", "no-such-model", "hello"], 1),
        (["run", "missing.gguf", "hello"], 1),
        (["--prompt", "x", "--temp", "nan"], 2),
        (["perplexity", "smollm2", "no-such-file.txt"], 2),
        (["perplexity", "no-such-model", os.devnull], 2),
    ],
)
def test_nothing_heavy_is_imported_before_a_model_is_loaded(
    argv: list[str], code: int, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", PROBE, json.dumps(argv), json.dumps(HEAVY)]
    environment = os.environ | {"XDG_DATA_HOME": str(tmp_path)}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL, check=True
    )
    assert json.loads(done.stdout.splitlines()[-1]) == [code, []], done.stderr


@pytest.fixture
def failure(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """The exit code and the one line on standard error of a command line that must not succeed."""

    def failure(*argv: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
        code = main(argv)
        captured = capsys.readouterr()
        assert captured.out == ""
        (line,) = captured.err.splitlines()
        assert line.startswith("nanollama: error: ")
        return code, line.removeprefix("nanollama: error: ")

    return failure


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["runn", "smollm2"], "unknown command runn (did you mean run?)"),
        (["frobnicate"], "unknown command frobnicate: nanollama --help"),
        (["why is the sky blue"], "nanollama run 'why is the sky blue'"),
        (["--prompt", "x", "--max-token", "3"], "unknown option --max-token (did you mean --max-tokens?)"),
        (["run", "smollm2", "x", "--tempo=3"], "unknown option --tempo (did you mean --temp?)"),
        (["run", "smollm2", "x", "--frobnicate"], "unknown option --frobnicate: nanollama run --help"),
        (["--temp", "0.5", "run", "smollm2"], "unexpected argument 'run'"),
        (
            ["run", "./folder", "--prompt", "x"],
            "--prompt belongs to the form without a command: nanollama run",
        ),
        (["run", "--model=x", "hi"], "--model belongs to the form without a command"),
        (["completion", "tcsh"], "SHELL is 'tcsh'; expected one of"),
        (["--prompt"], "--prompt needs a value: nanollama --help"),
        (["perplexity", "smollm2"], "what is missing is FILE: nanollama perplexity --help"),
    ],
)
def test_a_wrong_command_line_is_one_sentence_with_a_suggestion(
    failure, argv: list[str], message: str
) -> None:
    code, line = failure(*argv)
    assert code == 2
    assert message in line


@pytest.mark.parametrize(
    ("flag", "values", "expected"),
    [
        ("--temperature", ["nan", "inf", "-0.1", "101", "1e400", "warm", ""], "a number from 0 to 100"),
        ("--temp", ["-inf2", "0,5"], "a number from 0 to 100"),
        (
            "--top-k",
            ["-1", "1.5", "1e3", "9" * 5000, "2147483649", "٣", "0x10"],
            "a whole number of at least 0",
        ),
        ("--top-p", ["-0.1", "1.1", "nan"], "a number from 0 to 1"),
        ("--min-p", ["-0.1", "1.1", "nan"], "a number from 0 to 1"),
        ("--repeat-penalty", ["0", "-1", "nan", "101"], "a number from 0.01 to 100"),
        ("--repeat-last-n", ["-2", "x"], "a whole number of at least -1"),
        ("--presence-penalty", ["nan", "101"], "a number from -100 to 100"),
        ("--frequency-penalty", ["nan", "-101"], "a number from -100 to 100"),
        ("--logit-bias", ["3", "x=1", "-1=2", "3=nan", "3=inf", "=1"], "ID=VALUE"),
        ("--seed", ["x", "1.0", str(2**64)], "a whole number"),
        ("--max-tokens", ["0", "-1", "many"], "a whole number of at least 1"),
        ("--stop", ["", "x" * 257], "a text of 1 to 256 characters"),
        ("--ctx", ["7", "0", "big"], "a whole number of at least 8"),
        ("--n-ctx", ["-1"], "a whole number of at least 8"),
        ("--context-policy", ["drop", "ERROR"], "one of drop_oldest, error"),
        ("--device", ["gpu", "CPU"], "one of auto, cpu, cuda, mps"),
        ("--dtype", ["fp16", "int8"], "one of float32, float16, bfloat16"),
    ],
)
def test_a_value_out_of_range_is_refused_at_the_edge(
    failure, flag: str, values: list[str], expected: str
) -> None:
    for value in values:
        for form in (["run", "smollm2", "hi"], ["--prompt", "hi"]):
            code, line = failure(*form, f"{flag}={value}")
            assert code == 2
            assert "must be " + expected in line
            assert len(line) < 250


def test_an_error_of_the_operating_system_is_a_sentence(failure, tmp_path: Path) -> None:
    code, line = failure("perplexity", "smollm2", str(tmp_path))
    assert code == 2
    assert line == f"cannot read {tmp_path}: Is a directory"


def test_output_that_cannot_be_written_is_a_sentence() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "nanollama", "list"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, "nanollama: error: No space left on device\n")


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-"])
def test_a_closed_stream_is_no_crash(closed: str) -> None:
    command = f'"{sys.executable}" -m nanollama run no-such-model hi {closed}'
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


def test_piped_text_that_does_not_end_is_not_waited_for_in_silence() -> None:
    command = [sys.executable, "-m", "nanollama", "run", "no-such-model", "hi"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "[reading standard input to its end]\n"
        process.communicate("", timeout=60)
        assert process.returncode == 1


@pytest.mark.model
def test_a_reader_that_goes_away_is_no_error(stories_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "nanollama",
        "--prompt",
        "Once",
        "--model",
        str(stories_path),
        "--backend",
        "torch",
        "--seed",
        "1",
    ]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == "Loaded 5 layers, 292.8K params on cpu (float32)\n"
        assert process.wait(60) == 141


def test_a_warning_is_a_sentence_without_a_line_of_code(tmp_path: Path) -> None:
    models = tmp_path / "nanollama/models"
    models.mkdir(parents=True)
    for name in ("models.json", "models.json.bak"):
        (models / name).write_text("{")
    done = subprocess.run(
        [sys.executable, "-m", "nanollama", "bench", "zzzzzz"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"XDG_DATA_HOME": str(tmp_path)},
    )
    warning, error = done.stderr.splitlines()
    assert warning.startswith("nanollama: models.json is damaged and so is its copy")
    assert error.startswith("nanollama: error: there is no model 'zzzzzz'")


def test_the_table_of_commands_names_what_their_parsers_add() -> None:
    """A command is looked up in the table before its module is imported."""
    top = Parser(prog="nanollama")
    subparsers = top.add_subparsers()
    for module, add_parser in wanted_parsers(""):
        getattr(import_module(f"nanollama.cli.{module}"), add_parser)(subparsers)
    assert list(subparsers.choices) == [name for names, _, _ in COMMANDS for name in names]


def test_a_command_imports_no_other_commands_module() -> None:
    code = (
        "import sys; from nanollama.cli.main import main; main(['path', '--help']); "
        "sys.exit(bool({'nanollama.cli.run', 'nanollama.cli.bench'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
