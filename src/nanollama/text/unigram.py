"""The Unigram model of a tokenizer.json: its pieces and their scores go in, a model of the ``tokenizers``
library without control tokens comes out.

Such a model takes the cut of a word with the highest sum of scores (Kudo 2018, Subword Regularization). Its
pieces are known by their places in a list, so that leaving some out renumbers the others: ``ids`` has the
number that the file gives to each that is left.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nanollama.errors import FormatError, UnsupportedError
from nanollama.formats.strict_json import Json
from nanollama.text.segmenters import LibrarySegmenter

if TYPE_CHECKING:
    import tokenizers

Piece = tuple[str, float]


@dataclass(frozen=True, slots=True)
class Unigram:
    """The pieces of a file with their scores, and the id of the one for what no piece is."""

    pieces: Sequence[Piece]
    unk: int
    byte_fallback: bool

    @property
    def unk_text(self) -> str:
        return self.pieces[self.unk][0]

    def vocab(self) -> dict[str, int]:
        """Text -> id."""
        return {text: index for index, (text, _) in enumerate(self.pieces)}

    def model(self, control: Collection[str]) -> tuple[Any, list[int]]:
        """The library's model of the pieces that are not in ``control``, and their ids.

        The unknown piece comes first and has no text. What no piece is costs ten less than the lowest score,
        so the lowest is kept as well, whosever it is.
        """
        from tokenizers import models

        left = [
            index for index, (text, _) in enumerate(self.pieces) if text not in control and index != self.unk
        ]
        lowest = min(score for _, score in self.pieces)
        kept = [("", lowest), *(self.pieces[index] for index in left)]
        return models.Unigram(kept, 0, self.byte_fallback), [self.unk, *left]


def read_unigram(model: Json, where: str) -> Unigram:
    """The ``model`` of the file ``where``.

    Raises:
        FormatError: it is no list of pieces and scores.
        UnsupportedError: it has no piece for what is unknown, without which the library can't cut all texts.
    """
    vocab, unk = model.get("vocab"), model.get("unk_id")
    if not isinstance(vocab, list) or not vocab:
        raise FormatError(f"model.vocab in {where} is {vocab!r:.60}; expected a list of pieces and scores")
    pieces = [_piece(entry, index, where) for index, entry in enumerate(vocab)]
    if unk is None:
        raise UnsupportedError(
            f"model.unk_id in {where} is missing, and without it not every text has tokens"
        )
    if type(unk) is not int or not 0 <= unk < len(pieces):
        raise FormatError(f"model.unk_id in {where} is {unk!r:.60}; expected 0 to {len(pieces) - 1}")
    fallback = model.get("byte_fallback")
    if not isinstance(fallback, bool | None):
        raise FormatError(f"model.byte_fallback in {where} is {fallback!r:.60}; expected true or false")
    found = Unigram(pieces, unk, bool(fallback))
    if len(ids := found.vocab()) < len(pieces):
        repeated = next(text for index, (text, _) in enumerate(pieces) if ids[text] != index)
        raise FormatError(f"the piece {repeated!r:.60} in {where} occurs twice; pieces must differ")
    return found


def _piece(entry: object, index: int, where: str) -> Piece:
    match entry:
        case [str(text), int() | float() as score] if text and not isinstance(score, bool):
            if abs(score) < 1e30:
                return text, float(score)
    raise FormatError(f"model.vocab[{index}] in {where} is {entry!r:.60}; expected a piece and its score")


class UnigramSegmenter(LibrarySegmenter):
    """A pipeline whose model counts pieces otherwise than the file does: ``ids`` are the file's numbers."""

    def __init__(
        self, ids: Sequence[int], tokenizer: "tokenizers.Tokenizer", inner: "tokenizers.Tokenizer | None"
    ) -> None:
        super().__init__(tokenizer, inner)
        self._ids = ids

    def __call__(self, text: str, *, start: bool) -> list[int]:
        return [self._ids[index] for index in super().__call__(text, start=start)]
