import io
import re

import pytest

from nanollama.cli.progress import ProgressBar


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True

    def last_line(self):
        return re.split(r"\r|\n", self.getvalue().rstrip("\n"))[-1].removeprefix("\x1b[K")


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_the_bar_shows_share_amount_speed_and_time_left(clock, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    bar = ProgressBar(terminal := Terminal(), clock)
    bar.begin("downloading smollm2", 100_000_000)
    clock.now += 2
    bar.update(25_000_000)
    assert re.fullmatch(
        r"downloading smollm2 ━{10}╌{30}  25 %  25\.0 MB  12\.5 MB/s  0:06 left *", terminal.last_line()
    )


def test_speed_counts_only_what_came_since_a_resume(clock):
    bar = ProgressBar(terminal := Terminal(), clock)
    bar.begin("downloading", 100_000_000, 50_000_000)
    clock.now += 5
    bar.update(60_000_000)
    assert " 60 %  60.0 MB  2.0 MB/s  0:20 left" in terminal.last_line()


def test_speed_and_time_left_are_those_of_late(clock):
    bar = ProgressBar(terminal := Terminal(), clock)
    bar.begin("downloading", 4_000_000_000)
    done = 0
    for speed in [100_000_000] * 20 + [10_000_000] * 40:
        clock.now += 1
        done += speed
        bar.update(done)
    assert " 60 %  2.40 GB  10.0 MB/s  2:40 left" in terminal.last_line()


def test_at_the_end_a_plain_line_has_the_speed_of_the_whole(clock):
    bar = ProgressBar(stream := io.StringIO(), clock)
    bar.begin("downloading", 100_000_000)
    for done, seconds in [(90_000_000, 9), (90_000_001, 50), (100_000_000, 41)]:
        clock.now += seconds
        bar.update(done)
    bar.end()
    assert stream.getvalue().splitlines()[-1] == "downloading: done, 1.0 MB/s"


def test_other_units_are_counted_as_they_are(clock):
    bar = ProgressBar(terminal := Terminal(), clock)
    bar.begin("perplexity", 40, unit="windows")
    clock.now += 2
    bar.update(10)
    assert " 25 %  10 windows  5 windows/s  0:06 left" in terminal.last_line()


@pytest.mark.parametrize("columns", [20, 40, 60, 80, 200])
def test_a_line_is_never_wider_than_the_terminal(columns, clock, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    bar = ProgressBar(terminal := Terminal(), clock)
    bar.begin("downloading a model with quite a long name", 10**12)
    for done in (1, 10**9, 10**12):
        clock.now += 1000
        bar.update(done)
        assert len(terminal.last_line()) < columns


def test_the_bar_is_redrawn_ten_times_a_second_at_most(clock):
    bar = ProgressBar(terminal := Terminal(), clock)
    bar.begin("downloading", 1000)
    for done in range(1000):
        clock.now += 0.001
        bar.update(done)
    assert 5 <= terminal.getvalue().count("\r") <= 11


def test_a_notice_does_not_mix_with_the_bar(clock):
    bar = ProgressBar(terminal := Terminal(), clock)
    bar.begin("downloading", 10)
    clock.now += 1
    bar.update(5)
    bar.notice("something happened")
    bar.end()
    assert "\r\x1b[Ksomething happened\n" in terminal.getvalue()
    assert terminal.getvalue().endswith("\n")


def test_without_a_terminal_there_are_a_few_plain_lines(clock):
    bar = ProgressBar(stream := io.StringIO(), clock)
    bar.begin("downloading", 100_000_000)
    for done in range(0, 100_000_001, 1_000_000):
        clock.now += 0.1
        bar.update(done)
    bar.end()
    lines = stream.getvalue().splitlines()
    assert 3 <= len(lines) <= 6
    assert lines[0] == "downloading: 100.0 MB"
    assert lines[-1].startswith("downloading: done, ")
    assert "\r" not in stream.getvalue()
    assert "\x1b" not in stream.getvalue()


def test_nothing_to_do_and_no_time_passed_divide_by_nothing(clock):
    for stream in (Terminal(), io.StringIO()):
        bar = ProgressBar(stream, clock)
        bar.begin("nothing", 0)
        bar.update(0)
        bar.end()
        assert "nothing" in stream.getvalue()
