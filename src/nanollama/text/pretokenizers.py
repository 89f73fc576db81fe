r"""The table of pre-tokenizers: a name or an expression in a model file goes in, the regular expressions that
cut text into words come out.

A GGUF file names its pre-tokenizer; a tokenizer.json writes the expressions out, and only those in the table
are run: another one could take time quadratic in the text, or end in a panic of the library's engine. The
expressions are facts about how each model was trained, written in Oniguruma's syntax (that of the
``tokenizers`` library). They are applied one after the other, each to the pieces the one before left, a match
and what lies between matches being a piece each. None takes more than linear time: ``\s+$`` of the DeepSeek
originals is written ``(?<!\s)\s++$`` for that reason.
"""

import re
import warnings
from dataclasses import dataclass

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPELLED_OUT = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_PUNCTUATION = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
_ASCII_PUNCTUATION = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"""
_FALCON_PUNCTUATION = r"[\p{P}\$\+<=>\^~\|`]+"
# Cased letters as DeepSeek's tokenizer lists them: ranges of code points.
_DEEPSEEK_RANGES = (
    "41-5A 61-7A B5 C0-D6 D8-F6 F8-1BA 1BC-1BF 1C4-293 295-2AF 370-373 376-377 37B-37D 37F 386 388-38A "
    "38C 38E-3A1 3A3-3F5 3F7-481 48A-52F 531-556 10A0-10C5 13A0-13F5 13F8-13FD 1C90-1CBA 1CBD-1CBF "
    "1D00-1D2B 1D6B-1D77 1D79-1D9A 1E00-1F15 1F18-1F1D 1F20-1F45 1F48-1F4D 1F50-1F57 1F59 1F5B 1F5D "
    "1F5F-1F7D 1F80-1FB4 1FB6-1FBC 1FBE 1FC2-1FC4 1FC6-1FCC 1FD0-1FD3 1FD6-1FDB 1FE0-1FEC 1FF2-1FF4 "
    "1FF6-1FFC 2102 2107 210A-2113 2115 2119-211D 2124 2126 2128 212A-212D 212F-2134 2139 213C-213F "
    "2145-2149 214E 2183-2184 2C00-2C7B 2C7E-2CE4 2CEB-2CEE 2CF2-2CF3 A640-A66D A680-A69B A722-A76F "
    "A771-A787 A78B-A78E AB70-ABBF FB00-FB06 FB13-FB17 FF21-FF3A FF41-FF5A 10400-1044F 104B0-104D3 "
    "104D8-104FB 10C80-10CB2 10CC0-10CF2 118A0-118DF 1E900-1E943 "
)
_DEEPSEEK_LETTERS = re.sub("[0-9A-F]+", lambda code: chr(int(code[0], 16)), _DEEPSEEK_RANGES).replace(" ", "")
_DEEPSEEK_PUNCTUATION = "!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002"
_DEEPSEEK_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_DEEPSEEK_V3_CJK = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_BLOOM_STOPS = "(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)"


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """How text is cut into words before merging.

    ``ignore_merges``: a word that is a token is taken as it stands. ``adds_bos``: what holds where the file
    does not say.
    """

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    adds_bos: bool = False


def _join(*alternatives: str) -> str:
    return "|".join(alternatives)


_GPT2_STYLE = PreTokenizer((_GPT2,))
_SINGLE_DIGITS = PreTokenizer((r"\p{N}", _GPT2))
_LLAMA3_PATTERN = _join(_CONTRACTIONS, _WORD, r"\p{N}{1,3}", _PUNCTUATION, _SPACES)
_LLAMA3 = PreTokenizer((_LLAMA3_PATTERN,), ignore_merges=True, adds_bos=True)
_LLAMA3_PLAIN = PreTokenizer((_LLAMA3_PATTERN,))
_QWEN2 = PreTokenizer((_join(_CONTRACTIONS, _WORD, r"\p{N}", _PUNCTUATION, _SPACES),))
_QWEN35 = PreTokenizer(
    (
        _join(
            _CONTRACTIONS,
            r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+",
            r"\p{N}",
            r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",
            _SPACES,
        ),
    )
)
_DEEPSEEK_LLM = PreTokenizer(
    (
        r"[\r\n]",
        rf"\s?[{_DEEPSEEK_LETTERS}]+",
        rf"\s?[{_DEEPSEEK_PUNCTUATION}]+",
        r"(?<!\s)\s++$",
        _DEEPSEEK_CJK,
        r"\p{N}+",
    )
)
_DEEPSEEK_CODER = PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_CJK, r"\p{N}"))
_DEEPSEEK_V3 = PreTokenizer(
    (
        r"\p{N}{1,3}",
        _DEEPSEEK_V3_CJK,
        _join(
            rf"{_ASCII_PUNCTUATION}[A-Za-z]+",
            r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+",
            r" ?[\p{P}\p{S}]+[\r\n]*",
            _SPACES,
        ),
    )
)
_FALCON = PreTokenizer((_FALCON_PUNCTUATION, _GPT2, "[0-9][0-9][0-9]"))
_DEFAULT = PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"))
_TEKKEN = PreTokenizer(
    (_join(*_CASED, r"\p{N}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", _SPACES),), ignore_merges=True, adds_bos=True
)
_GPT4O = PreTokenizer(
    (
        _join(
            *(f"{word}{_CONTRACTIONS}?" for word in _CASED),
            r"\p{N}{1,3}",
            r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
            _SPACES,
        ),
    )
)
_CL100K = (  # as tiktoken writes it
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|"
    r"\s+(?!\S)|\s+"
)
_CL100K_POSSESSIVE = (  # as newer releases of tiktoken write it
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|"
    r"\s*[\r\n]|\s+(?!\S)|\s"
)
_BLOOM = PreTokenizer((f" ?[^{_BLOOM_STOPS}]+",))

TABLE: dict[str, PreTokenizer] = {
    "default": _DEFAULT,
    # words with their space, digits together
    "gpt-2": _GPT2_STYLE,
    "gpt2": _GPT2_STYLE,
    "phi": _GPT2_STYLE,
    "phi-2": _GPT2_STYLE,
    "mpt": _GPT2_STYLE,
    "olmo": _GPT2_STYLE,
    "jais": _GPT2_STYLE,
    "trillion": _GPT2_STYLE,
    "gigachat": _GPT2_STYLE,
    "exaone4": _GPT2_STYLE,
    "mellum": _GPT2_STYLE,
    "modern-bert": _GPT2_STYLE,
    "roberta-bpe": _GPT2_STYLE,
    "jina-v1-en": _GPT2_STYLE,
    "jina-v2-es": _GPT2_STYLE,
    "jina-v2-de": _GPT2_STYLE,
    "jina-v2-code": _GPT2_STYLE,
    "granite-docling": _GPT2_STYLE,
    # the same, each digit alone
    "smollm": _SINGLE_DIGITS,
    "starcoder": _SINGLE_DIGITS,
    "refact": _SINGLE_DIGITS,
    "command-r": _SINGLE_DIGITS,
    "codeshell": _SINGLE_DIGITS,
    "exaone": _SINGLE_DIGITS,
    "minerva-7b": _SINGLE_DIGITS,
    # digits in threes
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "falcon3": _LLAMA3,
    "pixtral": _LLAMA3,
    "lfm2": _LLAMA3,
    "dbrx": _LLAMA3_PLAIN,
    "smaug-bpe": _LLAMA3_PLAIN,
    "glm4": _LLAMA3_PLAIN,
    "chatglm-bpe": _LLAMA3_PLAIN,
    # digits alone
    "qwen2": _QWEN2,
    "qwen": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "stablelm2": _QWEN2,
    "megrez": _QWEN2,
    "hunyuan": _QWEN2,
    "grok-2": _QWEN2,
    "qwen35": _QWEN35,
    "deepseek-llm": _DEEPSEEK_LLM,
    "deepseek-coder": _DEEPSEEK_CODER,
    "deepseek-v3": _DEEPSEEK_V3,
    "hunyuan-dense": _DEEPSEEK_V3,
    "falcon": _FALCON,
    # words cut where lower case meets upper case
    "tekken": _TEKKEN,
    "gpt-4o": _GPT4O,
    "o200k": _GPT4O,
    "llama4": _GPT4O,
    "minimax-m2": _GPT4O,
    "bloom": _BLOOM,
    "poro-chat": _BLOOM,
    "gpt3-finnish": _BLOOM,
    "viking": PreTokenizer((*_BLOOM.patterns, r"\p{N}")),
}
"""``tokenizer.ggml.pre`` -> pre-tokenizer."""


# Spellings of tokenizer.json that no named pre-tokenizer has, and what runs in their place.
FURTHER = {
    r"\s+$": r"(?<!\s)\s++$",
    r"[^\S\r\n]+": r"[^\S\r\n]+",
    r"[\r\n]+": r"[\r\n]+",
    r"\d": r"\d",
    r"\d+": r"\d+",
    r"\s+": r"\s+",
    " ": " ",
    " +": " +",
    " {2,}": " {2,}",
    r"\p{N}+": r"\p{N}+",
    r"\p{Nd}": r"\p{Nd}",
    r"\p{L}+": r"\p{L}+",
    _CL100K: _CL100K,
    _CL100K_POSSESSIVE: _CL100K_POSSESSIVE,
    **{
        pattern.replace(_CONTRACTIONS, _SPELLED_OUT): pattern.replace(_CONTRACTIONS, _SPELLED_OUT)
        for pattern in (_LLAMA3_PATTERN, _QWEN2.patterns[0], _QWEN35.patterns[0])
    },
}
_EXPRESSIONS = {
    **FURTHER,
    **{pattern: pattern for pre_tokenizer in TABLE.values() for pattern in pre_tokenizer.patterns},
}


def find_expression(pattern: str) -> str | None:
    """The expression to run for ``pattern`` of a tokenizer.json, ``None`` if it is not in the table.

    Line ends and tabs may be written as themselves or escaped.
    """
    spelled = pattern
    for character, escape in (("\r", r"\r"), ("\n", r"\n"), ("\t", r"\t")):
        spelled = spelled.replace(character, escape)
    return _EXPRESSIONS.get(spelled)


def find_pre_tokenizer(name: object) -> PreTokenizer:
    """The pre-tokenizer called ``name``. One that is missing or not in the table is a warning and the
    default.
    """
    if isinstance(name, str) and name in TABLE:
        return TABLE[name]
    what = "names no pre-tokenizer" if name is None else f"names the unknown pre-tokenizer {name!r:.60}"
    warnings.warn(
        f"the model {what}, so the default one is used: words may be split otherwise than in training",
        stacklevel=2,
    )
    return _DEFAULT
