"""``nanollama bench``: figures with their bounds, for people and for programs."""

import json
from pathlib import Path

import pytest

from nanollama.cli.main import main
from nanollama.model.shapes import SHAPES


def bench(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert main(["bench", *args, "--repeats", "1", "--prefill", "40", "--decode", "3"]) == 0
    return capsys.readouterr().out


def test_json_has_every_figure(stories_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = json.loads(bench(capsys, str(stories_path), "--json", "--backend", "torch", "--threads", "1"))
    assert facts["prefill_tok_s"] > 0
    assert facts["decode_tok_s"] > 0
    assert (facts["prefill_tokens"], facts["decode_tokens"], facts["threads"]) == (40, 3, 1)
    assert (facts["backend"], facts["device"], facts["dtype"]) == ("torch", "cpu", "float32")
    for figure in ("read_gb_s", "decode_bandwidth_share", "mac_rate", "prefill_mac_share"):
        assert facts[figure] > 0
    assert facts["load_s"] > 0
    assert facts["rss_mb"] > 10


@pytest.mark.model
def test_the_native_backend_is_measured_beside_the_read_bandwidth(
    smollm2_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = json.loads(bench(capsys, str(smollm2_path), "--json", "--backend", "native", "--batch", "3"))
    assert facts["batch"] == 3
    assert facts["read_gb_s"] > 0
    # Three sequences share one reading of the weights, so this may come near 1 but not exceed it by much.
    assert 0 < facts["decode_bandwidth_share"] < 1.5
    assert facts["mac_rate"] > 1e9
    assert 0 < facts["prefill_mac_share"] < 1.5


def test_a_batch_may_take_more_cache_than_the_model_has_context(
    stories_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each of the sequences has a window of its own."""
    facts = json.loads(bench(capsys, str(stories_path), "--json", "--threads", "1", "--batch", "64"))
    assert facts["batch"] == 64


def test_a_window_too_small_for_what_is_measured_is_refused(
    stories_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", str(stories_path), "--prefill", "40", "--ctx", "32"]) == 2
    assert "--ctx is 32 and what is to be measured takes 129 tokens" in capsys.readouterr().err


def test_people_get_sentences(stories_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = bench(capsys, str(stories_path), "--backend", "torch")
    assert "prefill" in shown
    assert "(3 tokens after 1)" in shown


@pytest.mark.parametrize("option", ["--batch=0", "--prefill=0", "--repeats=x", "--context=-1"])
def test_lengths_that_can_not_be_are_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "smollm2", option]) == 2
    assert option.split("=")[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "backend"),
    [
        (("--backend", "native", "--weights", "Q4_0"), ("native", "cpu", "as stored")),
        (("--backend", "torch", "--dtype", "bfloat16"), ("torch", "cpu", "bfloat16")),
    ],
)
def test_a_shape_is_measured_with_random_weights(
    options: tuple[str, ...],
    backend: tuple[str, str, str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small = {**SHAPES["smollm2-135m"], "num_hidden_layers": 2, "vocab_size": 512}
    monkeypatch.setitem(SHAPES, "small", small)
    facts = json.loads(
        bench(capsys, "--shape", "small", *options, "--json", "--threads", "1", "--batch", "2")
    )
    assert facts["model"].startswith("small, random")
    assert (facts["backend"], facts["device"], facts["dtype"]) == backend
    assert facts["decode_tok_s"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "a MODEL or the --shape"),
        (("smollm2", "--shape", "smollm2-135m"), "a MODEL or the --shape"),
        (("--shape", "gpt-5"), "known are llama-3.1-8b"),
        (("smollm2", "--weights", "Q4_0"), "--weights"),
        (("--shape", "smollm2-135m", "--weights", "IQ1_S"), "--weights must be one of"),
    ],
)
def test_what_is_to_be_measured_must_be_clear(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *arguments]) == 2
    assert message in capsys.readouterr().err
