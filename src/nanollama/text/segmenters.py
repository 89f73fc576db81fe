"""From plain text to token ids: one class for each kind of tokenizer, each called with a piece without
special tokens.

Invariant: no segmenter ever produces a control token, whatever the text. SentencePiece is our own merge
loop; byte-level BPE and everything in a tokenizer.json run in the ``tokenizers`` library, which is imported
only when one of them is built.
"""

import heapq
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

from nanollama.errors import FormatError, UnsupportedError
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
        return LibrarySegmenter(_byte_level_bpe(vocabulary))
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
        """O(n log n) in the length of ``word``: each merge puts at most two new pairs on the heap."""
        pieces = list(word)
        count = len(pieces)
        following = list(range(1, count + 1))
        previous = list(range(-1, count - 1))
        heap: list[tuple[float, int, int]] = []

        def offer(left: int, right: int) -> None:
            union = pieces[left] + pieces[right]
            token_id = self._ids.get(union)
            if token_id is not None:
                heapq.heappush(heap, (-self._scores[token_id], left, len(union)))

        for left in range(count - 1):
            offer(left, left + 1)
        while heap:
            _, left, length = heapq.heappop(heap)
            right = following[left]
            # A piece that was merged away is empty. Pieces only grow, so a stale pair shows by its length.
            if not pieces[left] or right == count or len(pieces[left]) + len(pieces[right]) != length:
                continue
            pieces[left] += pieces[right]
            pieces[right] = ""
            after = following[left] = following[right]
            if after < count:
                previous[after] = left
                offer(left, after)
            if previous[left] >= 0:
                offer(previous[left], left)
        return [token_id for piece in pieces if piece for token_id in self._piece_ids(piece)]

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


def _byte_level_bpe(vocabulary: Vocabulary) -> "tokenizers.Tokenizer":
    """GPT-2's byte-level BPE: words by the named pre-tokenizer, bytes as printable characters, merges in
    file order.
    """
    from tokenizers import Regex, Tokenizer, pre_tokenizers

    assert vocabulary.pre is not None
    tokenizer = Tokenizer(_bpe_model(vocabulary))
    steps: list[Any] = [
        pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in vocabulary.pre.patterns
    ]
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    return tokenizer


def _bpe_model(vocabulary: Vocabulary) -> Any:
    from tokenizers import models

    assert vocabulary.pre is not None
    ids = dict(zip(vocabulary.tokens, range(len(vocabulary.tokens)), strict=True))
    for text in vocabulary.control:
        del ids[text]
    merges = [tuple(merge.split(" ", 1)) for merge in vocabulary.merges]
    try:
        return models.BPE(ids, merges, ignore_merges=vocabulary.pre.ignore_merges)  # type: ignore[arg-type]
    except Exception:  # the library raises bare exceptions; find out which entry it was
        merges = _usable_merges(merges, ids, vocabulary)
    try:
        return models.BPE(ids, merges, ignore_merges=vocabulary.pre.ignore_merges)  # type: ignore[arg-type]
    except Exception as error:
        raise UnsupportedError(f"the tokenizer's vocabulary cannot be used: {error}") from error


def _usable_merges(
    merges: Sequence[tuple[str, ...]], ids: dict[str, int], vocabulary: Vocabulary
) -> list[tuple[str, ...]]:
    """The merges without those that would make a control token out of text. Raises FormatError for others."""
    usable: list[tuple[str, ...]] = []
    for index, merge in enumerate(merges):
        where = f"tokenizer.ggml.merges[{index}] is {vocabulary.merges[index]!r:.100}"
        if len(merge) != 2:
            raise FormatError(f"{where}, but two pieces with a space between them are expected")
        pieces = (*merge, "".join(merge))
        if any(piece in vocabulary.control for piece in pieces):
            continue
        missing = next((piece for piece in pieces if piece not in ids), None)
        if missing is not None:
            raise FormatError(f"{where}, but tokenizer.ggml.tokens has no piece {missing!r:.100}")
        usable.append(merge)
    return usable
