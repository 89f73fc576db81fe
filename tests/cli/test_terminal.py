"""What reaches a person's eyes, and what must not reach the terminal behind them."""

import pytest

from nanollama.cli.terminal import harmless, notices, rate, timing_text
from nanollama.types import Completion, Timings

ZERO = Timings(0, 0.0, 0, 0.0)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\ttext\n", "plain\ttext\n"),
        ("\x1b[2Jgone", "␛[2Jgone"),
        ("\x1b]0;title\x07", "␛]0;title␇"),
        ("over\rwrite", "overwrite"),
        ("line\r\n", "line\n"),
        ("a\x08b\x7f\x00", "a␈b␡␀"),
        ("c1 \x9b31m", "c1 \ufffd31m"),
        ("ünï \N{GRINNING FACE} 你好", "ünï \N{GRINNING FACE} 你好"),
    ],
)
def test_control_characters_are_shown_and_not_obeyed(text: str, shown: str) -> None:
    assert harmless(text) == shown
    assert "".join(map(harmless, text)) == shown, "however the stream is cut"


def test_a_file_gets_the_text_unchanged_and_a_terminal_gets_it_harmless(screen, tty_screen) -> None:
    for each in (screen, tty_screen):
        each.terminal.write("a\x1b[1mb")
    assert screen.out == "a\x1b[1mb"
    assert tty_screen.out == "a␛[1mb"


def test_notes_are_dim_on_a_terminal_only(screen, tty_screen) -> None:
    for each in (screen, tty_screen):
        each.terminal.note("hm\x1b")
    assert screen.err == "[hm\x1b]\n"
    assert tty_screen.err == "\x1b[2m[hm␛]\x1b[0m\n"


def test_an_answer_ends_with_exactly_one_newline(screen) -> None:
    screen.terminal.write("one")
    screen.terminal.end_line()
    screen.terminal.write("two\n")
    screen.terminal.end_line()
    screen.terminal.end_line()
    assert screen.out == "one\ntwo\n"


def test_a_loading_message_is_only_for_a_person_and_leaves_no_trace(screen, tty_screen) -> None:
    for each in (screen, tty_screen):
        with each.terminal.status("Loading x …"):
            pass
    assert screen.err == ""
    assert tty_screen.err == "Loading x …\r\x1b[K"


@pytest.mark.parametrize(
    ("speed", "shown"),
    [
        (0.0, "0.0"),
        (9.54, "9.5"),
        (99.94, "99.9"),
        (99.96, "100"),
        (100.0, "100"),
        (113.4, "113"),
        (12345.6, "12346"),
    ],
)
def test_a_rate_has_a_decimal_below_a_hundred(speed: float, shown: str) -> None:
    assert rate(speed) == shown


def test_the_timing_line_has_the_documented_form() -> None:
    timings = Timings(prefill_tokens=23, prefill_s=23 / 113, decode_tokens=8, decode_s=8 / 9.5)
    assert timing_text(timings) == "prefill: 23 tok @ 113 t/s | decode: 8 tok @ 9.5 t/s"
    cached = Timings(prefill_tokens=23, prefill_s=23 / 113, decode_tokens=0, decode_s=0.0, cached_tokens=400)
    assert timing_text(cached) == "prefill: 23 tok @ 113 t/s + 400 cached | decode: 0 tok @ 0.0 t/s"


@pytest.mark.parametrize(
    ("completion", "max_tokens", "lines"),
    [
        (Completion("", (1,), "stop", 5, ZERO), 1, []),
        (Completion("", (1,), "length", 5, ZERO), 1, ["stopped: max tokens reached"]),
        (
            Completion("", (1,) * 95, "length", 5, ZERO),
            None,
            ["stopped: the context window of 100 tokens is full"],
        ),
        (
            Completion("", (1,) * 95, "length", 5, ZERO),
            500,
            ["stopped: the context window of 100 tokens is full"],
        ),
        (
            Completion("", (), "stop", 5, ZERO, dropped_messages=4, dropped_tokens=812),
            None,
            [
                "context full: dropped the 4 oldest messages (812 tokens); "
                "--context-policy error refuses instead"
            ],
        ),
        (
            Completion("", (), "stop", 5, ZERO, dropped_messages=1, dropped_tokens=12),
            None,
            ["context full: dropped the oldest message (12 tokens); --context-policy error refuses instead"],
        ),
    ],
)
def test_what_was_cut_is_said(completion: Completion, max_tokens: int | None, lines: list[str]) -> None:
    assert notices(completion, 100, max_tokens) == lines


def test_a_note_during_a_status_stands_in_front_of_it(tty_screen) -> None:
    with tty_screen.terminal.status("Loading …"):
        tty_screen.terminal.interrupt("compiling")
    shown = tty_screen.err.replace("\x1b[2m", "").replace("\x1b[0m", "")
    assert shown == "Loading …\r\x1b[K[compiling]\nLoading …\r\x1b[K"


def test_a_note_amid_an_answer_has_a_line_of_its_own(tty_screen) -> None:
    tty_screen.terminal.write("The capital")
    tty_screen.terminal.interrupt("compiling")
    assert tty_screen.err.startswith("\n")
