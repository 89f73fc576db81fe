"""The fast parts of the tokenizer beside their slow twins: added-token matching and SentencePiece merging."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanollama.text.segmenters import SPACE, SentencePieceSegmenter
from nanollama.text.special import SpecialMatcher
from nanollama.text.vocab import AddedFlags, SpecialIds, Vocabulary

CALM = settings(max_examples=500, deadline=None, derandomize=True)


def split_slowly(text: str, ids: Mapping[str, int]) -> list[int | str]:
    """llama.cpp's way: for each token, longest first, cut every piece of plain text at its occurrences."""
    parts: list[int | str] = [text] if text else []
    for token in sorted(ids, key=lambda token: -len(token.encode())):
        cut: list[int | str] = []
        for part in parts:
            if isinstance(part, int):
                cut.append(part)
                continue
            for index, plain in enumerate(part.split(token)):
                cut += [ids[token]] if index else []
                cut += [plain] if plain else []
        parts = cut
    return parts


@CALM
@given(
    st.text(st.sampled_from("ab<"), max_size=24),
    # No two of one length that could overlap each other: their order is not defined.
    st.sets(
        st.sampled_from(["a", "ab", "aba", "<a", "<ab<", "bab<a", "aa", "aaa", "aaaaa", "b<b<b<"]), min_size=1
    ),
)
def test_matching_equals_cutting_by_one_token_after_the_other(text: str, tokens: set[str]) -> None:
    by_length = {len(token): token for token in sorted(tokens)}
    ids = {token: index for index, token in enumerate(by_length.values())}
    assert SpecialMatcher({}, ids, {}).split(text, (), False) == split_slowly(text, ids)


@pytest.mark.parametrize(
    ("flags", "text", "expected"),
    [
        (AddedFlags(), "a <m> b", ["a ", 0, " b"]),
        (AddedFlags(lstrip=True), "a <m> b", ["a", 0, " b"]),
        (AddedFlags(rstrip=True), "a <m> \nb", ["a ", 0, "b"]),
        (AddedFlags(lstrip=True, rstrip=True), " <m>  <m> ", [0, 0]),
        (AddedFlags(rstrip=True), "<m> <n> x", [0, 1, " x"]),
        (AddedFlags(single_word=True), "a<m> <m>b _<m> <m>", ["a<m> <m>b _<m> ", 0]),
        (AddedFlags(single_word=True), "<m>", [0]),
    ],
)
def test_added_tokens_treat_their_surroundings_as_their_flags_say(
    flags: AddedFlags, text: str, expected: list[int | str]
) -> None:
    matcher = SpecialMatcher({"<m>": 0, "<n>": 1}, {}, {0: flags})
    assert matcher.split(text, (), True) == expected


def vocabulary(pieces: Sequence[str], scores: Sequence[float]) -> Vocabulary:
    tokens = [f"<0x{byte:02X}>" for byte in range(256)] + list(pieces)
    return Vocabulary(
        kind="sentencepiece",
        tokens=tokens,
        types=[6] * 256 + [1] * len(pieces),
        special=SpecialIds(None, None, None, frozenset(), False, False),
        control={},
        user_defined={},
        scores=[0.0] * 256 + list(scores),
    )


def merge_slowly(text: str, scores: Mapping[str, float]) -> list[str]:
    """Join the best pair of neighbours of the whole text, leftmost among equals, until none is a token."""
    pieces = list(text)
    while True:
        pairs = [(-scores[a + b], i) for i, (a, b) in enumerate(pairwise(pieces)) if a + b in scores]
        if not pairs:
            return pieces
        _, i = min(pairs)
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]


PIECES = st.text(st.sampled_from(f"ab>{SPACE}"), min_size=1, max_size=5)


@CALM
@given(
    st.dictionaries(PIECES, st.integers(-3, 0), max_size=12), st.text(st.sampled_from("ab> é"), max_size=30)
)
def test_merging_word_by_word_equals_merging_the_whole_text(scores: dict[str, int], text: str) -> None:
    segmenter = SentencePieceSegmenter(vocabulary(list(scores), list(map(float, scores.values()))))
    tokens = vocabulary(list(scores), [0.0] * len(scores)).tokens
    expected: list[str] = []
    for piece in merge_slowly(text.replace(" ", SPACE), scores):
        expected += [piece] if piece in scores else [f"<0x{byte:02X}>" for byte in piece.encode()]
    assert [tokens[token_id] for token_id in segmenter(text, start=True)] == expected
