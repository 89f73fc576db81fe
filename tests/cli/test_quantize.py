"""The ``quantize`` command and ``--quantize``: what they print, what they refuse, what they leave behind."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nanollama.cli.main import main
from nanollama.formats.gguf import GGUFFile


def test_a_file_is_written_and_its_sizes_are_told(
    stories_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out.gguf"
    assert main(["quantize", str(stories_path), str(target), "--type", "q8_0"]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{target}: 365 kB of weights in Q8_0, 1 MB before\n"
    assert "quantized already" not in captured.err
    assert "out.gguf: done" in captured.err or "100 %" in captured.err
    assert "got F16 for ffn_down (5)" in captured.err
    with GGUFFile(target) as file:
        assert file.tensors["blk.0.attn_q.weight"].fmt.name == "Q8_0"
        assert file.tensors["blk.0.attn_norm.weight"].fmt.name == "F32"


def test_a_source_that_was_quantized_before_is_noticed(
    stories_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    once, twice = tmp_path / "once.gguf", tmp_path / "twice.gguf"
    assert main(["quantize", str(stories_path), str(once), "--type", "Q8_0"]) == 0
    capsys.readouterr()
    assert main(["quantize", str(once), str(twice), "--type", "Q4_0"]) == 0
    assert "once.gguf is quantized already (Q8_0): what was lost then stays lost" in capsys.readouterr().err


REFUSALS = [
    (
        ["--type", "Q3_K"],
        "--type must be one of Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K_S, Q4_K_M, Q5_K_S, Q5_K_M, Q6_K, F16, "
        "BF16, F32, not 'Q3_K'",
    ),
    ([], "--type is missing: give one of Q8_0, Q4_0"),
]


@pytest.mark.parametrize(("options", "message"), REFUSALS)
def test_a_type_that_is_missing_or_unknown_is_refused_with_the_list(
    options: list[str], message: str, stories_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["quantize", str(stories_path), str(tmp_path / "out.gguf"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_existing_file_is_replaced_only_with_force(
    stories_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out.gguf"
    target.write_bytes(b"precious")
    words = ["quantize", str(stories_path), str(target), "--type", "Q8_0"]
    assert main(words) == 2
    assert "exists already: give another DST, or --force to replace it" in capsys.readouterr().err
    assert target.read_bytes() == b"precious"
    assert main([*words, "--force"]) == 0
    assert target.read_bytes()[:4] == b"GGUF"


@pytest.mark.parametrize(
    ("destination", "message"),
    [
        (".", "is a folder: give the path of the file to write"),
        ("missing/out.gguf", "is not a folder: create it"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused(
    destination: str, message: str, stories_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["quantize", str(stories_path), str(tmp_path / destination), "--type", "Q8_0"]) == 2
    assert message in capsys.readouterr().err


def test_what_is_no_file_is_refused_before_the_work_begins(
    stories_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "pipe")
    words = ["quantize", str(stories_path), str(tmp_path / "pipe"), "--type", "Q8_0", "--force"]
    assert main(words) == 2
    captured = capsys.readouterr()
    assert "is there and no regular file: give the path of the file to write" in captured.err
    assert "MB" not in captured.err


@pytest.mark.parametrize("options", [(), ("--force",)])
def test_a_model_is_not_quantized_onto_itself(
    options: tuple[str, ...], stories_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without --force it was told that the file exists and to give --force."""
    source = tmp_path / "in.gguf"
    source.write_bytes(stories_path.read_bytes())
    other = tmp_path / "link.gguf"
    other.symlink_to(source)
    assert main(["quantize", str(source), str(other), "--type", "Q4_0", *options]) == 2
    assert "SRC and DST are both" in capsys.readouterr().err
    assert source.read_bytes() == stories_path.read_bytes()


def test_a_full_disk_is_noticed_before_writing(
    stories_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage)
    assert main(["quantize", str(stories_path), str(tmp_path / "out.gguf"), "--type", "F32"]) == 2
    assert "1 MB are needed in" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


class Usage:
    free = 1_000_000


def test_an_unknown_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", "no/such.gguf", str(tmp_path / "out.gguf"), "--type", "Q8_0"]) == 1
    assert "no/such.gguf" in capsys.readouterr().err


@pytest.mark.parametrize("form", [["run", "{}", "Once"], ["--model", "{}", "--prompt", "Once"]])
def test_quantize_at_load_says_what_it_saved_on_standard_error(form: list[str], stories_path: Path) -> None:
    words = [word.format(stories_path) for word in form]
    options = ["--quantize", "q8", "--max-tokens", "4", "--temp", "0"]
    done = subprocess.run(
        [sys.executable, "-m", "nanollama", *words, *options],
        capture_output=True, text=True, timeout=120, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Quantized: 0MB (Q8)   [vs ~1MB float32]" in done.stderr.splitlines()
    assert "Quantized" not in done.stdout


def test_an_unknown_width_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "smollm2", "Hi", "--quantize", "q5"]) == 2
    assert "--quantize must be one of q8, q4, not 'q5'" in capsys.readouterr().err
