"""A folder's tokenizer as GGUF metadata: the tokenizer and its files in, ``tokenizer.ggml.*`` keys out.

The keys are those that llama.cpp's converter writes. What GGUF can't say of a tokenizer.json shows in other
tokens for a text: such a tokenizer is refused, not written.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from nanollama.errors import UnsupportedError
from nanollama.formats.strict_json import Json, read_object
from nanollama.text.pretokenizers import TABLE, find_expression
from nanollama.text.tokenizer import Tokenizer
from nanollama.text.tokenizer_json import MAX_BYTES, steps
from nanollama.text.vocab import END_IF_CONTROL, MODELS, Vocabulary

Value = bool | int | str | Sequence[str] | Sequence[int] | Sequence[float]

_UNREACHED = -1e9
"""The score of a token that no merge makes: any other union goes before it."""

_SAMPLES = (
    "Hello world",
    " The quick (brown) fox can't jump 3.14 or 1234567 times!",
    "I'll say: they're, WE'VE, it's 50%...\n\n\tx = [1, 2]  # and   spaces \r\n",
    "Zoë's naïve café, Übergrößen — «цена» €99,95",
    "日本語のテキスト、中文。한국어 ١٢٣ हिन्दी",
    "👩‍👩‍👧 🚀🇺🇳 ½ ² Ⅷ",
    "def f(a_b: int) -> str:\n    return f'{a_b!r}' + \"\\n\"\n",
    "<b>tags</b> https://example.org/?q=a&b=c#d user@example.org",
)
"""Texts that known tokenizers differ in: contractions, digits, spaces, letters of many kinds."""


def gguf_of_tokenizer(folder: Path, tokenizer: Tokenizer) -> dict[str, Value]:
    """The keys for the ``tokenizer`` of the model in ``folder``.

    Raises:
        UnsupportedError: GGUF can't say how it cuts text.
    """
    vocabulary = tokenizer.vocabulary
    metadata = _keys(vocabulary)
    if vocabulary.kind == "sentencepiece":
        if not vocabulary.scores and "merges" not in _model(folder):
            raise UnsupportedError(
                f"{folder.name} has a Unigram tokenizer, which GGUF files of text models have no form for; "
                "use the folder itself"
            )
        scores = vocabulary.scores or _scores(vocabulary, _merges(_model(folder)))
        metadata["tokenizer.ggml.scores"] = scores
        metadata["tokenizer.ggml.add_space_prefix"] = vocabulary.space_prefix
    elif vocabulary.kind == "bpe":
        spec = read_object(folder / "tokenizer.json", MAX_BYTES)
        metadata["tokenizer.ggml.merges"] = [" ".join(merge) for merge in _merges(spec["model"])]
        metadata["tokenizer.ggml.pre"] = _pre_tokenizer(spec)
    else:
        raise UnsupportedError(
            f"{folder.name} has a {vocabulary.kind} tokenizer, which is not for text models"
        )
    _check_same(tokenizer, Tokenizer.from_gguf(metadata))
    return metadata


def _keys(vocabulary: Vocabulary) -> dict[str, Value]:
    """What every kind of tokenizer has."""
    special = vocabulary.special
    model = next(name for name, kind in MODELS.items() if kind == vocabulary.kind)
    ids = {
        "bos": special.bos,
        "eos": special.eos,
        "unknown": special.unk,
        "eot": _further_end(vocabulary),
    }
    stated = {f"tokenizer.ggml.{name}_token_id": number for name, number in ids.items() if number is not None}
    return {
        "tokenizer.ggml.model": model,
        "tokenizer.ggml.tokens": list(vocabulary.tokens),
        "tokenizer.ggml.token_type": list(vocabulary.types),
        "tokenizer.ggml.add_bos_token": special.adds_bos,
        "tokenizer.ggml.add_eos_token": special.adds_eos,
        **stated,
    }


def _further_end(vocabulary: Vocabulary) -> int | None:
    """A token that ends an answer beside EOS: one that is not known by its text, if there is such a one."""
    ends = sorted(vocabulary.special.stop - {vocabulary.special.eos})
    unknown = [number for number in ends if vocabulary.tokens[number] not in END_IF_CONTROL]
    return next(iter(unknown or ends), None)


def _model(folder: Path) -> Json:
    model: Json = read_object(folder / "tokenizer.json", MAX_BYTES)["model"]
    return model


def _merges(model: Json) -> list[tuple[str, str]]:
    """The merges of a model that has been read before, so that they are known to be of two pieces each."""
    return [tuple(merge.split(" ", 1) if isinstance(merge, str) else merge) for merge in model["merges"]]


def _scores(vocabulary: Vocabulary, merges: Sequence[tuple[str, str]]) -> list[float]:
    """Scores that order unions as merges do: what is merged first has the highest."""
    ranks: dict[str, int] = {}
    for left, right in merges:
        ranks.setdefault(left + right, len(ranks))
    return [
        -float(ranks[text]) if text in ranks else 0.0 if len(text) == 1 else _UNREACHED
        for text in vocabulary.tokens
    ]


def _pre_tokenizer(spec: Json) -> str:
    """The name that llama.cpp has for what cuts text into words."""
    patterns = _patterns(spec)
    ignores = bool(spec["model"].get("ignore_merges"))
    for name, known in TABLE.items():
        if (known.patterns, known.ignore_merges) == (patterns, ignores):
            return name
    raise UnsupportedError(
        f"tokenizer.json cuts text into words in a way that GGUF files have no name for ({patterns!r:.200}); "
        "use the folder itself"
    )


def _patterns(spec: Json) -> tuple[str | None, ...]:
    """The expressions that a tokenizer.json runs one after another; ``None`` for a step that is none."""
    found: list[str | None] = []
    for step in steps(spec.get("pre_tokenizer")):
        match step.get("type"):
            case "Split":
                pattern = step.get("pattern")
                expression = pattern.get("Regex") if isinstance(pattern, Mapping) else None
                isolates = step.get("behavior") == "Isolated" or step.get("invert") is True
                found.append(find_expression(expression) if expression and isolates else None)
            case "Digits":
                found.append(r"\p{N}" if step.get("individual_digits") else r"\p{N}+")
            case "ByteLevel":
                if step.get("use_regex", True):
                    found += TABLE["gpt-2"].patterns
            case _:
                found.append(None)
    return tuple(found)


def _check_same(ours: Tokenizer, theirs: Tokenizer) -> None:
    """Raises UnsupportedError for a tokenizer whose file cuts a text otherwise."""
    for text in _SAMPLES:
        if ours.encode(text, add_special=True) != theirs.encode(text, add_special=True):
            raise UnsupportedError(
                f"the tokenizer cuts text in a way that GGUF files can't say (found at {text[:30]!r}); use "
                "the folder itself"
            )
