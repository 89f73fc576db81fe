"""The ``perplexity`` command on a real model, and the files it refuses."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from nanollama.cli.perplexity import progress_bar, read_text
from nanollama.errors import UsageError


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b" \n ", "is empty"),
        (b"ab\xff", "is not UTF-8 text (at byte 2)"),
        (None, "No such file"),
    ],
)
def test_a_file_without_text_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError) as refusal:
        read_text(path)
    assert message in str(refusal.value)


def test_progress_counts_tokens_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(n_ctx=64) as on_window:
        for done in range(1, 5):
            on_window(done, 4, 20.0)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("perplexity: 256 tok")
    assert "100 %" in captured.err or "done" in captured.err


def test_no_window_and_a_single_one_draw_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(n_ctx=64):
        pass
    with progress_bar(n_ctx=64) as on_window:
        on_window(1, 1, 20.0)
    assert capsys.readouterr().err == ""


@pytest.mark.model
def test_perplexity_prints_one_json_object(stories_path: Path, tmp_path: Path) -> None:
    text = tmp_path / "story.txt"
    text.write_text("Once upon a time, there was a little girl named Lily. She loved to play outside. " * 20)
    command = [sys.executable, "-m", "nanollama", "perplexity", str(stories_path), str(text)]
    options = ["--n-ctx", "64", "--max-windows", "3", "--json", "--device", "cpu", "--dtype", "float32"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert set(facts) == {"perplexity", "tokens", "windows"}
    assert facts["windows"] == 3
    assert facts["tokens"] == 3 * 31
    assert 1 < facts["perplexity"] < 10
    assert math.isfinite(facts["perplexity"])
