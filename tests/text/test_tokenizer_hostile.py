"""Hostile text costs about as much as ordinary text of its length: no quadratic matching, merging or
expressions.
"""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from nanollama.text.pretokenizers import FURTHER, TABLE, find_expression
from nanollama.text.special import SpecialMatcher
from nanollama.text.tokenizer import Tokenizer

BAITS = {
    "one letter": "a",
    "spaces": " ",
    "newlines": "\n",
    "half a control token": "<|im_",
    "control tokens": "<|im_end|>",
    "overlapping added tokens": "<<",
    "no spaces": "中文",
    "marks": "a\u0301",
    "alternation": "aA1! ",
    "quotes": "'",
}
DISTINCT = {id(entry): (name, entry) for name, entry in TABLE.items()}.values()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """SentencePiece with what invites trouble: runs of every length as tokens, and overlapping added
    tokens.
    """
    runs = [character * length for character in "a▁中" for length in range(1, 17)]
    added = [
        "<|im_end|>",
        *("<" * length for length in range(2, 12)),
        *("\n" * length for length in range(1, 32)),
    ]
    tokens = [*(f"<0x{byte:02X}>" for byte in range(256)), *runs, *added]
    types = [6] * 256 + [1] * len(runs) + [3] + [4] * (len(added) - 1)
    return Tokenizer.from_gguf(
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": types,
            "tokenizer.ggml.scores": [float(len(token)) for token in tokens],
            "tokenizer.ggml.add_space_prefix": False,
        }
    )


def calls_during(work: Callable[[], object]) -> int:
    """How many calls of Python and C functions ``work`` makes: what it costs, the same on every machine."""
    count = 0

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("bait", BAITS)
def test_twice_the_text_takes_about_twice_the_work(tokenizer: Tokenizer, bait: str) -> None:
    short, long = BAITS[bait] * 1000, BAITS[bait] * 2000
    work = [
        calls_during(lambda text=text: tokenizer.encode(text, parse_special=True)) for text in (short, long)
    ]
    assert work[1] <= 2.6 * work[0] + 200


@pytest.mark.parametrize("bait", BAITS)
def test_a_long_hostile_text_is_encoded_and_comes_back(tokenizer: Tokenizer, bait: str) -> None:
    text = (BAITS[bait] * 50_000)[:100_000]
    ids = tokenizer.encode(text, parse_special=True)
    assert tokenizer.decode(ids, skip_special=False) == text


@pytest.mark.parametrize("name", [name for name, _ in DISTINCT])
def test_every_expression_of_the_table_survives_hostile_text(name: str) -> None:
    from tokenizers import Regex, pre_tokenizers

    steps = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in TABLE[name].patterns]
    pre_tokenizer = pre_tokenizers.Sequence(steps)
    for bait in BAITS.values():
        text = (bait * 20_000)[:20_000] + "x."
        assert "".join(piece for piece, _ in pre_tokenizer.pre_tokenize_str(text)) == text


@pytest.mark.parametrize("written", FURTHER)
def test_every_further_expression_of_a_tokenizer_json_does_too(written: str) -> None:
    from tokenizers import Regex, pre_tokenizers

    expression = find_expression(written)
    assert expression is not None
    split = pre_tokenizers.Split(Regex(expression), "isolated")
    for bait in BAITS.values():
        text = bait * (60_000 // len(bait))
        assert "".join(piece for piece, _ in split.pre_tokenize_str(text)) == text


def test_the_expression_with_a_quadratic_original_is_linear_here() -> None:
    r"""``\s+$`` retries from every space of a long run: a minute for this text, which must pass at once."""
    from tokenizers import Regex, pre_tokenizers

    pattern = TABLE["deepseek-llm"].patterns[3]
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    assert len(split.pre_tokenize_str(" " * 300_000 + "x")) == 1
    assert [piece for piece, _ in split.pre_tokenize_str("a b  ")] == ["a b", "  "]


def test_every_character_of_unicode_is_encoded(tokenizer: Tokenizer) -> None:
    text = "".join(chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000).replace("▁", "")
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_text_of_thousands_of_different_control_tokens_is_matched_in_one_pass() -> None:
    control = {f"<unused{index}>": index for index in range(6000)}
    matcher = SpecialMatcher(control, {}, {})
    text = "".join(control) * 5
    assert matcher.split(text, (), True) == list(control.values()) * 5
    assert matcher.split(text, [(0, len(text))], True) == [text]
