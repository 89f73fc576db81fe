"""SentencePiece model files that break the rules: each gives one clear error."""

import random
import struct

import pytest

from nanollama.errors import FormatError, NanollamaError
from nanollama.text.sentencepiece_model import parse_sentencepiece


def field(number: int, payload: bytes) -> bytes:
    return bytes([number << 3 | 2]) + bytes([len(payload)]) + payload


def piece(text: str, score: float = 0.0, kind: int = 1) -> bytes:
    score_field = bytes([2 << 3 | 5]) + struct.pack("<f", score)
    return field(1, field(1, text.encode()) + score_field + bytes([3 << 3, kind]))


PLAIN = bytes([4 << 3, 0])  # remove_extra_whitespaces = false
GOOD = piece("<unk>", kind=2) + piece("a", -1.5) + field(2, bytes([3 << 3, 2])) + field(3, PLAIN)


def test_the_fields_that_matter_are_read() -> None:
    model = parse_sentencepiece(GOOD)
    assert model.pieces == ("<unk>", "a")
    assert model.scores == (0.0, -1.5)
    assert model.types == (2, 1)
    assert (model.bos, model.eos, model.unk, model.space_prefix) == (1, None, 0, True)


def test_unknown_fields_are_stepped_over() -> None:
    unknown = (
        bytes([9 << 3 | 1]) + bytes(8) + bytes([10 << 3 | 5]) + bytes(4) + bytes([11 << 3]) + b"\x80\x01"
    )
    assert parse_sentencepiece(unknown + field(12, b"x") + GOOD).pieces == ("<unk>", "a")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no pieces"),
        (field(1, b"")[:1], "cut short"),
        (field(1, bytes(20))[:10], "cut short"),
        (bytes([1 << 3 | 2]) + b"\xff" * 9 + b"\x01", "cut short"),
        (b"\x80" * 30, "does not end"),
        (bytes([1 << 3 | 3]), "unknown wire type 3"),
        (bytes([1 << 3 | 7]), "unknown wire type 7"),
        (piece(""), "piece 0 .* is ''"),
        (piece("a", kind=9), "type 9"),
        (piece("a", kind=0), "type 0"),
        (piece("a", score=float("nan")), "score nan"),
        (field(1, field(1, b"\xff\xfe")), "not UTF-8"),
        (b"\x08\x01", "no pieces"),
    ],
)
def test_a_damaged_model_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        parse_sentencepiece(data)


def test_random_damage_gives_no_other_error() -> None:
    chance = random.Random(3)
    for _ in range(5000):
        data = bytearray(GOOD)
        for _ in range(chance.choice((1, 2, 5))):
            data[chance.randrange(len(data))] = chance.randrange(256)
        try:
            parse_sentencepiece(bytes(data[: chance.randrange(1, len(data) + 1)]))
        except NanollamaError:
            continue
