"""The text stream: what is final is shown at once, and nothing of a stop string leaks."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanollama.formats.gguf import GGUFFile
from nanollama.text.stream import TextStream
from nanollama.text.tokenizer import Tokenizer


class ByteTokenizer:
    """A vocabulary of the 256 bytes, so that every text has one obvious tokenization."""

    def token_bytes(self, token_id: int, *, skip_special: bool = True) -> bytes:
        return bytes([token_id])


def pieces(text: str, stop: tuple[str, ...] = ()) -> tuple[list[str], bool]:
    stream = TextStream(ByteTokenizer(), stop)  # type: ignore[arg-type]
    out = []
    for byte in text.encode():
        out.append(stream.push(byte))
        if stream.stopped:
            break
    out.append(stream.flush())
    return out, stream.stopped


def test_text_without_stop_strings_is_shown_at_once() -> None:
    assert pieces("abc")[0] == ["a", "b", "c", ""]


@given(text=st.text(max_size=20))
def test_with_no_stop_strings_text_comes_as_with_one_that_never_appears(text: str) -> None:
    assert pieces(text) == pieces(text, ("\ud800",))


def test_half_a_character_is_held_back() -> None:
    assert pieces("é!")[0] == ["", "é", "!", ""]


@pytest.mark.parametrize(
    ("text", "stop", "shown"),
    [
        ("hello END more", ("END",), "hello "),
        ("hello EN", ("END",), "hello EN"),
        ("EENDx", ("END",), "E"),
        ("ENEND", ("END",), "EN"),
        ("abcabd", ("abd",), "abc"),
        ("xaab", ("ab", "aab"), "x"),
        ("a\nb\n\nc", ("\n\n",), "a\nb"),
        ("größe", ("öß",), "gr"),
        ("END", ("END",), ""),
    ],
)
def test_a_stop_string_ends_the_text_and_never_leaks(text: str, stop: tuple[str, ...], shown: str) -> None:
    out, stopped = pieces(text, stop)
    assert "".join(out) == shown
    assert stopped == any(s in text for s in stop)


def test_text_that_turns_out_not_to_be_a_stop_string_is_shown_as_soon_as_that_is_known() -> None:
    assert pieces("ENx", ("END",))[0] == ["", "", "ENx", ""]


@settings(max_examples=500, deadline=None, derandomize=True)
@given(text=st.text("abé", max_size=30), stop=st.lists(st.text("abé", min_size=1, max_size=4), max_size=3))
def test_the_pieces_are_the_text_up_to_the_first_stop_string(text: str, stop: list[str]) -> None:
    # What can be found first is decided byte by byte: the stop string that is complete first wins.
    ends = [(text.find(s) + len(s), text.find(s)) for s in stop if s in text]
    first_end = min((end for end, _ in ends), default=None)
    starts = [start for end, start in ends if end == first_end]
    expected = text if first_end is None else text[: min(starts)]
    assert "".join(pieces(text, tuple(stop))[0]) == expected


@pytest.mark.model
def test_a_real_tokenizer_streams_what_it_decodes(smollm2_path: Path) -> None:
    with GGUFFile(smollm2_path) as file:
        tokenizer = Tokenizer.from_gguf(file.metadata)
    text = "Grüße aus 東京 🗼, ça va?\n\n  x = 1"
    stream = TextStream(tokenizer)
    ids = tokenizer.encode(text)
    assert "".join(map(stream.push, ids)) + stream.flush() == text
