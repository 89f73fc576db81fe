"""Incremental detokenization equals the whole decoding, for any split, any bytes and any ids."""

import codecs
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanollama.formats.gguf import GGUFFile
from nanollama.text.detokenize import Detokenizer
from nanollama.text.tokenizer import Tokenizer

CALM = settings(max_examples=300, deadline=None, derandomize=True)


def streamed(tokenizer: Tokenizer, ids: Sequence[int], *, skip_special: bool = True) -> list[str]:
    detokenizer = Detokenizer(tokenizer, skip_special=skip_special)
    return [*(detokenizer.push(token_id) for token_id in ids), detokenizer.flush()]


@pytest.fixture(scope="module")
def byte_tokenizer() -> Tokenizer:
    """One token a byte, then two control tokens."""
    pieces = [*(f"<0x{byte:02X}>" for byte in range(256)), "<s>", "</s>"]
    return Tokenizer.from_gguf(
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": pieces,
            "tokenizer.ggml.scores": [0.0] * 258,
            "tokenizer.ggml.token_type": [6] * 256 + [3, 3],
            "tokenizer.ggml.bos_token_id": 256,
            "tokenizer.ggml.eos_token_id": 257,
        }
    )


@pytest.fixture(scope="module")
def smollm2(smollm2_path: Path) -> Tokenizer:
    with GGUFFile(smollm2_path) as file:
        return Tokenizer.from_gguf(file.metadata)


@CALM
@given(
    st.one_of(st.binary(max_size=60), st.text(max_size=30).map(lambda text: text.encode("utf-8", "replace")))
)
def test_any_bytes_stream_to_their_whole_decoding(byte_tokenizer: Tokenizer, raw: bytes) -> None:
    pieces = streamed(byte_tokenizer, list(raw))
    assert "".join(pieces) == raw.decode("utf-8", "replace") == byte_tokenizer.decode(raw)


@CALM
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_no_piece_holds_half_a_character(byte_tokenizer: Tokenizer, text: str) -> None:
    pieces = streamed(byte_tokenizer, list(text.encode()))
    assert "".join(pieces) == text
    assert pieces[-1] == ""
    assert all(len(piece) <= 1 for piece in pieces)


@CALM
@given(st.lists(st.integers(0, 49151), max_size=40), st.booleans())
def test_any_ids_stream_to_their_whole_decoding(
    smollm2: Tokenizer, ids: list[int], skip_special: bool
) -> None:
    pieces = streamed(smollm2, ids, skip_special=skip_special)
    assert "".join(pieces) == smollm2.decode(ids, skip_special=skip_special)


@pytest.mark.parametrize(
    ("raw", "pieces"),
    [
        (b"a\xc3\xa9b", ["a", "", "é", "b", ""]),
        (b"\xf0\x9f\xa6\x99", ["", "", "", "🦙", ""]),
        (b"\xf0\x9f", ["", "", "\ufffd"]),  # cut off: one replacement for the one character begun
        (b"\xe2\x28", ["", "\ufffd(", ""]),  # shown as soon as it can't become a character
        (b"\xff\x80", ["\ufffd", "\ufffd", ""]),
        (b"", [""]),
    ],
)
def test_characters_come_whole_and_broken_ones_as_a_replacement(
    byte_tokenizer: Tokenizer, raw: bytes, pieces: list[str]
) -> None:
    assert streamed(byte_tokenizer, list(raw)) == pieces


def test_control_tokens_are_shown_only_on_request(byte_tokenizer: Tokenizer) -> None:
    ids = [256, 0x41, 257]
    assert streamed(byte_tokenizer, ids) == ["", "A", "", ""]
    assert streamed(byte_tokenizer, ids, skip_special=False) == ["<s>", "A", "</s>", ""]


def test_a_completion_keeps_its_leading_space(byte_tokenizer: Tokenizer) -> None:
    assert "".join(streamed(byte_tokenizer, list(b" Paris"))) == " Paris"


def test_the_standard_decoder_is_used_with_replacement() -> None:
    """Guards the assumption that splitting does not change what ``replace`` gives for a broken sequence."""
    for raw in (b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe0\x80\xaf", b"\xc0\xaf", b"\xf8\x88\x80\x80\x80"):
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        split = "".join(decoder.decode(bytes((byte,))) for byte in raw) + decoder.decode(b"", final=True)
        assert split == raw.decode("utf-8", "replace")
