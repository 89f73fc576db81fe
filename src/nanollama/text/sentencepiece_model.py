"""A SentencePiece ``tokenizer.model``: its bytes go in, the pieces and the settings that matter come out.

The file is a Protocol Buffers message (google/sentencepiece, ``sentencepiece_model.proto``). Only the fields
below are looked at; all others are stepped over by their wire type. Every length is compared with what is
left before anything is taken.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from nanollama.errors import FormatError, UnsupportedError

MAX_PIECES = 1 << 22
_ALGORITHMS = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}
_NORMAL, _BYTE = 1, 6

Value = int | memoryview


@dataclass(frozen=True, slots=True)
class SentencePieceModel:
    """One entry a piece in ``pieces``, ``scores`` and ``types``, whose numbers are those of ``TokenType``.

    An id is ``None`` where the model has no such token. ``space_prefix``: a space is put before a text.
    """

    pieces: tuple[str, ...]
    scores: tuple[float, ...]
    types: tuple[int, ...]
    bos: int | None
    eos: int | None
    unk: int | None
    space_prefix: bool


def parse_sentencepiece(data: bytes) -> SentencePieceModel:
    """The BPE model in ``data``.

    Raises:
        FormatError: the bytes are no such message.
        UnsupportedError: another algorithm, or a normalization that changes text.
    """
    pieces: list[tuple[str, float, int]] = []
    trainer: dict[int, Value] = {}
    normalizer: dict[int, Value] = {}
    for number, value in _fields(memoryview(data)):
        if number == 1 and isinstance(value, memoryview):
            if len(pieces) == MAX_PIECES:
                raise FormatError(f"tokenizer.model has more than {MAX_PIECES:,} pieces")
            pieces.append(_piece(value, len(pieces)))
        elif number == 2 and isinstance(value, memoryview):
            trainer.update(_fields(value))
        elif number == 3 and isinstance(value, memoryview):
            normalizer.update(_fields(value))
    if not pieces:
        raise FormatError("tokenizer.model has no pieces; it is damaged or no SentencePiece model")
    _check_supported(trainer, normalizer)
    texts, scores, types = zip(*pieces, strict=True)
    return SentencePieceModel(
        pieces=texts,
        scores=scores,
        types=types,
        bos=_role(trainer, 41, 1, len(pieces)),
        eos=_role(trainer, 42, 2, len(pieces)),
        unk=_role(trainer, 40, 0, len(pieces)),
        space_prefix=normalizer.get(3, 1) == 1,
    )


def _piece(message: memoryview, index: int) -> tuple[str, float, int]:
    text, score, kind = "", 0.0, _NORMAL
    for number, value in _fields(message):
        if number == 1 and isinstance(value, memoryview):
            try:
                text = bytes(value).decode("utf-8")
            except UnicodeDecodeError:
                raise FormatError(f"piece {index} of tokenizer.model is not UTF-8 text") from None
        elif number == 2 and isinstance(value, memoryview) and len(value) == 4:
            score = struct.unpack("<f", value)[0]
        elif number == 3 and isinstance(value, int):
            kind = value
    if not text or not _NORMAL <= kind <= _BYTE or score != score:
        raise FormatError(
            f"piece {index} of tokenizer.model is {text!r:.60} of type {kind} and score {score}"
        )
    return text, score, kind


def _check_supported(trainer: dict[int, Value], normalizer: dict[int, Value]) -> None:
    algorithm = trainer.get(3, 1)
    if algorithm != 2:
        name = _ALGORITHMS.get(algorithm, "unknown") if isinstance(algorithm, int) else "unknown"
        raise UnsupportedError(
            f"tokenizer.model is a SentencePiece model of the {name} algorithm; only bpe is supported: "
            "use a folder that has a tokenizer.json"
        )
    if trainer.get(24, 0):
        raise UnsupportedError("tokenizer.model puts spaces behind words, which is not supported")
    if normalizer.get(2) or normalizer.get(4, 1):
        raise UnsupportedError(
            "tokenizer.model normalizes text before cutting it, which is not supported; use a folder that "
            "has a tokenizer.json"
        )


def _role(trainer: dict[int, Value], field: int, default: int, count: int) -> int | None:
    """The id of a token with a role. A negative one, in ten bytes, means that there is none."""
    value = trainer.get(field, default)
    return value if isinstance(value, int) and value < count else None


def _fields(message: memoryview) -> Iterator[tuple[int, Value]]:
    """Number and value of each field: integers as int, the rest as the bytes they take."""
    position, end = 0, len(message)
    while position < end:
        key, position = _varint(message, position)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, position = _varint(message, position)
            yield number, value
            continue
        if wire == 2:
            size, position = _varint(message, position)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise FormatError(f"tokenizer.model is damaged: field {number} has the unknown wire type {wire}")
        if size > end - position:
            raise FormatError("tokenizer.model is cut short; fetch it again")
        yield number, message[position : position + size]
        position += size


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """A base-128 number of at most ten bytes, and where it ends."""
    number = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            raise FormatError("tokenizer.model is cut short; fetch it again")
        byte = message[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, position
    raise FormatError("tokenizer.model is damaged: a number in it does not end")
