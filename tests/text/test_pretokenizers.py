"""The expressions that published tokenizer.json files bring are in the table, letter by letter."""

import json

import pytest
from tokenizers import Regex, pre_tokenizers

from nanollama.text.pretokenizers import find_expression

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
QWEN35 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK_V3 = (
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?"
    "[\\p{P}\\p{S}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
)
SPELLED_OUT = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
PUBLISHED: dict[str, tuple[str, ...]] = {
    "Llama 3, SmolLM 3, OLMo 2, Phi 4, Granite 4, R1 distils of Llama": (LLAMA3,),
    "Qwen 2, 2.5 and 3, and the R1 distils of it": (QWEN2,),
    "Qwen 3.5": (QWEN35,),
    "Mistral Nemo, Small 3": (TEKKEN,),
    "gpt-oss, Phi 4 mini": (O200K,),
    "DeepSeek V3 and R1": (r"\p{N}{1,3}", "[一-龥\u3040-ゟ\u30a0-ヿ]+", DEEPSEEK_V3),
    "DeepSeek LLM": (r"\s+$", r"\p{N}+"),
    "tiktoken's cl100k": (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|"
        r"\s+(?!\S)|\s+",
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|"
        r"\s*[\r\n]|\s+(?!\S)|\s",
    ),
    "contractions spelled out, as llama.cpp has them": tuple(
        SPELLED_OUT + pattern[pattern.index(")") + 1 :] for pattern in (LLAMA3, QWEN2, QWEN35)
    ),
    "GPT-2": (r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",),
}
"""Whose tokenizer.json -> its regular expressions. GPT-2's, SmolLM 2's, Granite 3's and StarCoder's name
steps of the library instead, and Gemma's and Llama 2's have none."""
TEXT = "I'll say: they're, WE'VE x1234567!!\r\n\n\tHéllo  wörld   日本語 \u0928\u093e 3.14 don'T"


@pytest.mark.parametrize("whose", PUBLISHED)
def test_published_expressions_are_known(whose: str) -> None:
    for pattern in PUBLISHED[whose]:
        known = find_expression(pattern)
        assert known is not None
        assert known == pattern or whose == "DeepSeek LLM"
        # That tokenizer takes line ends out first: the two spellings differ in what they call an end.
        text = TEXT if known == pattern else "one line,  and spaces   "
        theirs = pre_tokenizers.Split(Regex(pattern), "isolated").pre_tokenize_str(text)
        assert pre_tokenizers.Split(Regex(known), "isolated").pre_tokenize_str(text) == theirs


@pytest.mark.parametrize("pattern", [LLAMA3, QWEN2, O200K])
def test_line_ends_may_be_written_as_themselves(pattern: str) -> None:
    """Some writers put the characters into the JSON text where others put a backslash and a letter."""
    themselves = pattern.replace(r"\r", "\r").replace(r"\n", "\n")
    assert find_expression(json.loads(json.dumps(themselves))) == pattern


@pytest.mark.parametrize("pattern", ["(a+)+b", ".*", r"\s*x", LLAMA3 + "|", LLAMA3[:-1]])
def test_anything_else_is_unknown(pattern: str) -> None:
    assert find_expression(pattern) is None
