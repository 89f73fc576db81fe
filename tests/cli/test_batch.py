"""``--batch-file``: all prompts of a file together, and a second run that does what is missing."""

import json
from pathlib import Path

import pytest

from nanollama.cli.batch import BatchItem, Output, read_items
from nanollama.cli.main import main
from nanollama.errors import UsageError

LINES = ["Once upon a time", "Lily went to", "", "The big dog"]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(LINES) + "\n")
    return path


def batch(prompts: Path, stories: Path, *more: str) -> int:
    options = ["--max-tokens", "12", "--temp", "0", "--backend", "torch"]
    return main(["--batch-file", str(prompts), "--model", str(stories), *options, *more])


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_prompt_is_answered_in_order(
    prompts: Path, stories_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert batch(prompts, stories_path) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "Batch: 3 prompts"
    assert shown[1].startswith("[batch=3 | prefill: ")
    assert "| decode: 36 tok @" in shown[1]
    headings = [line for line in shown if line.startswith("---")]
    assert headings == ["--- Prompt 1 ---", "--- Prompt 2 ---", "--- Prompt 3 ---"]
    assert shown[3].startswith(", there was a little girl named Lily")


def test_the_output_has_a_line_for_each_and_a_second_run_does_what_is_missing(
    prompts: Path, stories_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "results.jsonl"
    assert batch(prompts, stories_path, "--output", str(output)) == 0
    complete = rows(output)
    assert sorted(row["custom_id"] for row in complete) == ["1", "2", "4"]
    # As after a crash: one answer whole, one cut off in the middle of its line.
    lines = output.read_text().splitlines(keepends=True)
    output.write_text(lines[0] + lines[1][:20])
    capsys.readouterr()
    assert batch(prompts, stories_path, "--output", str(output)) == 0
    assert "Batch: 2 prompts" in capsys.readouterr().out
    again = {row["custom_id"]: row for row in rows(output)}
    assert again == {row["custom_id"]: row for row in complete}


def test_jsonl_prompts_have_keys_and_settings_of_their_own(
    stories_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts, output = tmp_path / "prompts.jsonl", tmp_path / "results.jsonl"
    body = {"model": "any", "prompt": "Once upon a time", "max_tokens": 3}
    items = [
        {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": body},
        {"custom_id": "b", "prompt": "word " * 4000},
    ]
    prompts.write_text("\n".join(map(json.dumps, items)))
    assert batch(prompts, stories_path, "--output", str(output)) == 1
    by_key = {row["custom_id"]: row for row in rows(output)}
    assert by_key["a"]["completion_tokens"] == 3
    assert "context window" in by_key["b"]["error"]
    assert "prompt b failed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no prompt"),
        ("{}", "either prompt or messages"),
        ("[1]", "not an object"),
        ("{bad", "not JSON"),
        ('{"prompt": "a", "messages": []}', "either prompt or messages"),
        ('{"prompt": "a", "tools": []}', "tools"),
        ('{"custom_id": "x", "prompt": "a"}\n{"custom_id": "x", "prompt": "b"}', "twice"),
    ],
)
def test_a_file_of_another_form_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        read_items(path)


def test_lines_of_text_are_prompts_numbered_by_line(prompts: Path) -> None:
    assert read_items(prompts) == [
        BatchItem("1", "Once upon a time"),
        BatchItem("2", "Lily went to"),
        BatchItem("4", "The big dog"),
    ]


def test_a_file_that_holds_something_else_is_not_written_to(tmp_path: Path) -> None:
    path = tmp_path / "notes.jsonl"
    path.write_text("my notes\nin two lines")
    with pytest.raises(UsageError, match="other than answers"):
        Output(path)
    assert path.read_text() == "my notes\nin two lines"


@pytest.mark.parametrize("more", [["--prompt", "x"], ["--json"], ["--interactive"]])
def test_contradictions_are_refused(
    prompts: Path, more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--batch-file", str(prompts), *more]) == 2
    assert more[0] in capsys.readouterr().err
    assert main(["--output", "x.jsonl", "--prompt", "a"]) == 2


@pytest.mark.parametrize(
    ("output", "message"),
    [(".", "no regular file"), ("/dev/null", "no regular file"), ("no/x", "not a folder")],
)
def test_an_output_that_can_not_be_is_refused_before_loading(
    tmp_path: Path, monkeypatch, capsys, output: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text("hi\n")
    assert main(["--batch-file", "prompts.txt", "--output", output, "--model", "nosuch"]) == 2
    assert message in capsys.readouterr().err
    assert [each.name for each in tmp_path.iterdir()] == ["prompts.txt"]
