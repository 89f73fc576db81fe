"""From plain text to token ids: one class for each kind of tokenizer, each called with a piece without
special tokens.

Invariant: no segmenter ever produces a control token, whatever the text. The ``tokenizers`` library splits
text into words by regular expressions and runs what a tokenizer.json describes; it is imported only for that.
"""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

from nanollama.errors import FormatError
from nanollama.text.merging import join_pieces
from nanollama.text.vocab import Vocabulary

if TYPE_CHECKING:
    import tokenizers

SPACE = "▁"  # U+2581, how SentencePiece writes a space

_CACHED_WORDS = 16384
_CACHED_LENGTH = 48  # characters; bounds what the cache can hold to a few MB
_WORDPIECE_MAX_CHARS = 100  # longer words are unknown, as in the original BERT tokenizer


class Segmenter(Protocol):
    """Cuts plain text into tokens. ``start``: nothing, not even a special token, stands before ``text``."""

    def __call__(self, text: str, *, start: bool) -> list[int]: ...


def build_segmenter(vocabulary: Vocabulary) -> Segmenter:
    """The segmenter for a vocabulary read from GGUF metadata."""
    if vocabulary.kind == "sentencepiece":
        return SentencePieceSegmenter(vocabulary)
    if vocabulary.kind == "bpe":
        return ByteLevelSegmenter(vocabulary)
    return WordPieceSegmenter(vocabulary)


class SentencePieceSegmenter:
    """SentencePiece BPE: neighbours whose union is a token are joined, best score first, then leftmost.

    Characters that are no token become their UTF-8 bytes. The score order needs no list of merges: deriving
    one for 262,144 tokens takes seconds, this nothing (Kudo and Richardson 2018; the order is llama.cpp's).
    """

    def __init__(self, vocabulary: Vocabulary, *, prefix_inside: bool = True) -> None:
        """``prefix_inside``: text after a special token gets the space too that is put before a text."""
        ids = dict(zip(vocabulary.tokens, range(len(vocabulary.tokens)), strict=True))
        byte_pieces = [ids.pop(f"<0x{byte:02X}>", vocabulary.special.unk) for byte in range(256)]
        self._bytes = [piece for piece in byte_pieces if piece is not None]
        if len(self._bytes) < 256:
            raise FormatError(
                "tokenizer.ggml.tokens lacks byte tokens such as '<0x0A>' and there is no unknown token"
            )
        for text in vocabulary.control:
            ids.pop(text, None)
        self._ids = ids
        self._scores = vocabulary.scores
        self._space_prefix = vocabulary.space_prefix
        self._prefix_inside = prefix_inside
        self._seam = _seam(vocabulary.tokens)
        self._cached = lru_cache(_CACHED_WORDS)(self._merge)

    def __call__(self, text: str, *, start: bool) -> list[int]:
        text = text.replace(" ", SPACE)
        if self._space_prefix and (start or self._prefix_inside):
            text = SPACE + text
        ids: list[int] = []
        for word in self._seam.split(text):
            ids += self._cached(word) if len(word) <= _CACHED_LENGTH else self._merge(word)
        return ids

    def _merge(self, word: str) -> list[int]:
        pieces = join_pieces(word, self._rank)
        return [token_id for piece in pieces for token_id in self._piece_ids(piece)]

    def _rank(self, left: str, right: str) -> float | None:
        token_id = self._ids.get(left + right)
        return None if token_id is None else -self._scores[token_id]

    def _piece_ids(self, piece: str) -> list[int]:
        token_id = self._ids.get(piece)
        return [token_id] if token_id is not None else [self._bytes[byte] for byte in piece.encode()]


def _seam(tokens: Sequence[str]) -> re.Pattern[str]:
    """Where text can be cut without changing its tokens: before a space whose left neighbour no token joins
    to a space.

    Merging never crosses such a place, since the union would have to be a token. So words can be merged one
    by one and remembered, which makes long texts fast.
    """
    joined = set(re.findall(f"([^\0{SPACE}]){SPACE}", "\0".join(tokens)))
    return re.compile(f"(?<=[^{SPACE}{re.escape(''.join(sorted(joined)))}])(?={SPACE})")


class ByteLevelSegmenter:
    """GPT-2's byte-level BPE: words by the vocabulary's regular expressions, their UTF-8 bytes as printable
    characters, and neighbours joined in the order of the list of merges.

    Words are remembered. Building the ``tokenizers`` library's own model would double the time to the first
    token of a small model: it takes longer than a prompt does here (Radford et al. 2019).
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        from tokenizers import Regex, pre_tokenizers

        assert vocabulary.pre is not None
        self._ids = dict(zip(vocabulary.tokens, range(len(vocabulary.tokens)), strict=True))
        for text in vocabulary.control:
            del self._ids[text]
        merges = usable_merges(vocabulary, self._ids)
        self._ranks = dict(zip(merges, range(len(merges)), strict=True))
        self._whole_words = vocabulary.pre.ignore_merges
        steps: list[Any] = [
            pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in vocabulary.pre.patterns
        ]
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
        self._words = pre_tokenizers.Sequence(steps)
        self._cached = lru_cache(_CACHED_WORDS)(self._merge)

    def __call__(self, text: str, *, start: bool) -> list[int]:
        ids: list[int] = []
        for word, _ in self._words.pre_tokenize_str(text):
            ids += self._cached(word) if len(word) <= _CACHED_LENGTH else self._merge(word)
        return ids

    def _merge(self, word: str) -> list[int]:
        if self._whole_words and word in self._ids:
            return [self._ids[word]]
        pieces = join_pieces(word, self._rank)
        return [self._ids[piece] for piece in pieces if piece in self._ids]

    def _rank(self, left: str, right: str) -> int | None:
        return self._ranks.get(f"{left} {right}")


def usable_merges(vocabulary: Vocabulary, ids: Mapping[str, int]) -> Sequence[str]:
    """The merges without those that would make a control token out of text.

    Raises:
        FormatError: a merge is not two tokens, with a space between them, that make a third.
    """
    joined = "\0".join(vocabulary.merges)
    unions = joined.replace(" ", "").split("\0")
    if joined.count(" ") == len(vocabulary.merges) and all(map(ids.__contains__, unions)):
        return vocabulary.merges
    return [merge for i, merge in enumerate(vocabulary.merges) if _is_usable(merge, i, vocabulary, ids)]


def _is_usable(merge: str, index: int, vocabulary: Vocabulary, ids: Mapping[str, int]) -> bool:
    where = f"tokenizer.ggml.merges[{index}] is {merge!r:.100}"
    left, space, right = merge.partition(" ")
    if not space:
        raise FormatError(f"{where}, but two pieces with a space between them are expected")
    pieces = (left, right, left + right)
    if any(piece in vocabulary.control for piece in pieces):
        return False
    missing = next((piece for piece in pieces if piece not in ids), None)
    if missing is not None:
        raise FormatError(f"{where}, but tokenizer.ggml.tokens has no piece {missing!r:.100}")
    return True


class WordPieceSegmenter:
    """BERT's tokenizer: words, then the longest known prefix again and again; a word that does not work out
    is unknown.

    Tokens follow GGUF's spelling: ``▁`` before one that begins a word, nothing before one that continues
    it.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        from tokenizers import normalizers, pre_tokenizers

        assert vocabulary.special.unk is not None
        self._unk = vocabulary.special.unk
        self._ids = {
            text: index for index, text in enumerate(vocabulary.tokens) if text not in vocabulary.control
        }
        self._longest = max(map(len, vocabulary.tokens))
        self._normalizer = normalizers.BertNormalizer(
            clean_text=True,
            handle_chinese_chars=True,
            strip_accents=vocabulary.lowercase,
            lowercase=vocabulary.lowercase,
        )
        self._words = pre_tokenizers.BertPreTokenizer()
        self._cached = lru_cache(_CACHED_WORDS)(self._word)

    def __call__(self, text: str, *, start: bool) -> list[int]:
        normalized = self._normalizer.normalize_str(text)
        words = (word for word, _ in self._words.pre_tokenize_str(normalized))
        return [token_id for word in words for token_id in self._split(word)]

    def _split(self, word: str) -> list[int]:
        return [self._unk] if len(word) > _WORDPIECE_MAX_CHARS else self._cached(word)

    def _word(self, word: str) -> list[int]:
        rest = SPACE + word
        ids: list[int] = []
        while rest:
            for length in range(min(len(rest), self._longest), 0, -1):
                token_id = self._ids.get(rest[:length])
                if token_id is not None:
                    ids.append(token_id)
                    rest = rest[length:]
                    break
            else:
                return [self._unk]
        return ids


class LibrarySegmenter:
    """A pipeline of the ``tokenizers`` library without added tokens. ``inner`` is used after a special
    token.
    """

    def __init__(
        self, tokenizer: "tokenizers.Tokenizer", inner: "tokenizers.Tokenizer | None" = None
    ) -> None:
        self._tokenizer = tokenizer
        self._inner = inner or tokenizer

    def __call__(self, text: str, *, start: bool) -> list[int]:
        tokenizer = self._tokenizer if start else self._inner
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids
