"""A vocabulary as plain data: GGUF metadata goes in, a checked ``Vocabulary`` comes out.

Invariants: every id named here is inside ``tokens``; ``types`` has one entry a token; no two tokens of a GGUF
file share a text; for SentencePiece ``scores`` has one entry a token. The keys are those of the GGUF
specification (``tokenizer.ggml.*``).
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Literal

from nanollama.errors import FormatError, UnsupportedError
from nanollama.text.pretokenizers import PreTokenizer, find_pre_tokenizer

Kind = Literal["sentencepiece", "bpe", "wordpiece"]


class TokenType(IntEnum):
    """What a token is for (GGUF specification, ``tokenizer.ggml.token_type``)."""

    UNDEFINED = 0
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class SpecialIds:
    """Ids with a role. ``stop`` holds every token that ends a generation, ``eos`` among them."""

    bos: int | None
    eos: int | None
    unk: int | None
    stop: frozenset[int]
    adds_bos: bool
    adds_eos: bool


@dataclass(frozen=True, slots=True)
class AddedFlags:
    """How an added token treats its surroundings (``added_tokens`` of tokenizer.json)."""

    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Everything about a model's tokens that is data.

    ``space_prefix``: a space is put before each piece of plain text (SentencePiece's dummy prefix).
    ``lowercase``: text is lower-cased and stripped of accents first (WordPiece). ``scores`` is empty but for
    SentencePiece, ``merges`` but for BPE. ``flags`` holds only the tokens that have any.
    """

    kind: Kind
    tokens: Sequence[str]
    types: Sequence[int]
    special: SpecialIds
    control: Mapping[str, int]
    user_defined: Mapping[str, int]
    scores: Sequence[float] = ()
    merges: Sequence[str] = ()
    pre: PreTokenizer | None = None
    space_prefix: bool = False
    lowercase: bool = True
    flags: Mapping[int, AddedFlags] = field(default_factory=dict)


MODELS: dict[str, Kind] = {"llama": "sentencepiece", "gpt2": "bpe", "bert": "wordpiece"}
"""``tokenizer.ggml.model`` -> how it splits."""

# Tokens that end a turn or a text, by their text, since files rarely name them all (llama.cpp's list).
# fmt: off
END_OF_GENERATION = frozenset((
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>",
    "<end_of_turn>", "<|endoftext|>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>",
    "<end_of_utterance>", "<eos>", "<turn|>", "<\uff5cend▁of▁sentence\uff5c>", "[e~[", "<|fim_pad|>",
    "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]", "<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>",
    "<reponame>", "<|file_sep|>",
))
# The marks of fill-in-the-middle prompts (also llama.cpp's list).
_FILL_IN = frozenset((
    "<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<\uff5cfim▁begin\uff5c>", "<PRE>", "▁<PRE>",
    "<|code_prefix|>", "<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<\uff5cfim▁hole\uff5c>", "<SUF>",
    "▁<SUF>", "<|code_suffix|>", "<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<\uff5cfim▁end\uff5c>",
    "<MID>", "▁<MID>", "<|code_middle|>",
))
# fmt: on
# Ends a text only where it is a control token: elsewhere (Gemma) it is the closing tag of struck-out HTML.
END_IF_CONTROL = END_OF_GENERATION | {"</s>"}

_NO_TOKEN = 0xFFFFFFFF  # -1 in an unsigned field: how converters write "there is none"
_BYTE_PIECE = re.compile(r"<0x[0-9A-Fa-f]{2}>\Z")


def vocabulary_from_gguf(metadata: Mapping[str, Any]) -> Vocabulary:
    """The vocabulary in a GGUF file's key/values.

    Raises:
        FormatError: a key is missing or malformed; the message names it.
        UnsupportedError: the tokenizer is of a kind that is not read.
    """
    kind = _model_kind(metadata)
    tokens = _tokens(metadata)
    types = _per_token(metadata, "tokenizer.ggml.token_type", len(tokens)) or [int(TokenType.NORMAL)] * len(
        tokens
    )
    control, user_defined = split_added(tokens, types, kind)
    pre = find_pre_tokenizer(metadata.get("tokenizer.ggml.pre")) if kind == "bpe" else None
    lowercase = _flag(metadata, "tokenizer.ggml.normalizer.lowercase", True)
    return Vocabulary(
        kind=kind,
        tokens=tokens,
        types=types,
        special=_special_ids(metadata, kind, len(tokens), control, pre),
        control=control,
        user_defined=user_defined,
        scores=_scores(metadata, len(tokens)) if kind == "sentencepiece" else (),
        merges=_strings(metadata, "tokenizer.ggml.merges") if kind == "bpe" else (),
        pre=pre,
        space_prefix=_flag(metadata, "tokenizer.ggml.add_space_prefix", True) and kind == "sentencepiece",
        lowercase=lowercase,
    )


def split_added(
    tokens: Sequence[str], types: Sequence[int], kind: Kind
) -> tuple[dict[str, int], dict[str, int]]:
    """Text -> id of the control tokens and of the user-defined tokens.

    A user-defined token that is known to end a turn or to fill in the middle counts as control, as in
    llama.cpp: some converters wrote chat models so, and typed by a user it would become that token.
    """
    control: dict[str, int] = {}
    user_defined: dict[str, int] = {}
    normal = int(TokenType.NORMAL)  # comparing with the enum itself would cost 0.1 s for 262,144 tokens
    for index, kind_of in enumerate(types):
        if kind_of == normal:
            continue
        text = tokens[index]
        if kind_of in (TokenType.CONTROL, TokenType.UNKNOWN):
            control[text] = index
        elif kind_of == TokenType.USER_DEFINED:
            (control if text in END_OF_GENERATION or text in _FILL_IN else user_defined)[text] = index
        elif kind_of == TokenType.BYTE and kind == "sentencepiece" and not _BYTE_PIECE.match(text):
            raise FormatError(
                f"tokenizer.ggml.tokens[{index}] is {text!r}, but a byte is expected there, like '<0x0A>'"
            )
    return control, user_defined


def stop_ids(control: Mapping[str, int], named: Sequence[int | None]) -> frozenset[int]:
    """The ids that end a generation: those the file names, and control tokens with a well-known text."""
    known = {text for text in END_IF_CONTROL if text in control}
    # In the Harmony format a message ends with <|end|> but the turn goes on until <|return|> or <|call|>.
    if {"<|return|>", "<|call|>"} <= known or {"<|calls|>", "<|flush|>"} <= known:
        known.discard("<|end|>")
    return frozenset(control[text] for text in known) | {number for number in named if number is not None}


def _model_kind(metadata: Mapping[str, Any]) -> Kind:
    name = metadata.get("tokenizer.ggml.model")
    if name is None:
        raise FormatError(
            "the file has no tokenizer.ggml.model, so its tokens cannot be read; it may have no vocabulary"
        )
    if not isinstance(name, str) or name not in MODELS:
        raise UnsupportedError(
            f"tokenizer.ggml.model is {name!r:.60} and not supported; expected one of {', '.join(MODELS)}"
        )
    return MODELS[name]


def _strings(metadata: Mapping[str, Any], key: str) -> Sequence[str]:
    values = metadata.get(key)
    if values is None:
        raise FormatError(
            f"the file has no {key}, which its tokenizer ({metadata['tokenizer.ggml.model']}) needs"
        )
    if isinstance(values, str) or not isinstance(values, Sequence) or not set(map(type, values)) <= {str}:
        raise FormatError(f"{key} is {values!r:.60}, but an array of strings is expected")
    return values


def _per_token(metadata: Mapping[str, Any], key: str, count: int) -> Sequence[Any]:
    """An array of numbers with one item a token; empty where the file has none."""
    values = metadata.get(key)
    if values is None:
        return ()
    if (
        isinstance(values, str)
        or not isinstance(values, Sequence)
        or not set(map(type, values)) <= {int, float}
    ):
        raise FormatError(f"{key} is {values!r:.60}, but an array of numbers is expected")
    if len(values) != count:
        raise FormatError(
            f"{key} has {len(values)} items, but tokenizer.ggml.tokens has {count}; they must be as many"
        )
    return values


def _tokens(metadata: Mapping[str, Any]) -> Sequence[str]:
    tokens = _strings(metadata, "tokenizer.ggml.tokens")
    if not tokens:
        raise FormatError("tokenizer.ggml.tokens is empty, but a tokenizer needs at least one token")
    distinct = set(tokens)
    if "" in distinct:  # llama.cpp names them so too; a piece without text would match everywhere
        tokens = [text or f"[EMPTY_{index}]" for index, text in enumerate(tokens)]
        distinct = set(tokens)
    if len(distinct) != len(tokens):
        seen: dict[str, int] = {}
        for index, text in enumerate(tokens):
            if seen.setdefault(text, index) != index:
                raise FormatError(
                    f"tokenizer.ggml.tokens[{index}] is {text!r:.60}, which token {seen[text]} is too"
                )
    return tokens


def _scores(metadata: Mapping[str, Any], count: int) -> Sequence[float]:
    scores = _per_token(metadata, "tokenizer.ggml.scores", count)
    if not scores:
        raise FormatError(
            "the file has no tokenizer.ggml.scores, which its tokenizer (llama) needs to order merges"
        )
    if any(map(math.isnan, scores)):
        index = next(index for index, score in enumerate(scores) if math.isnan(score))
        raise FormatError(f"tokenizer.ggml.scores[{index}] is not a number, so merges have no order")
    return scores


def _flag(metadata: Mapping[str, Any], key: str, default: bool) -> bool:
    value = metadata.get(key, default)
    if type(value) is not bool:
        raise FormatError(f"{key} is {value!r:.60}, but true or false is expected")
    return value


def _token_id(metadata: Mapping[str, Any], key: str, count: int, default: int | None = None) -> int | None:
    value = metadata.get(key)
    if value is None:
        return default if default is None or default < count else None
    if type(value) is not int:
        raise FormatError(f"{key} is {value!r:.60}, but a token id is expected")
    if value in (_NO_TOKEN, -1):
        return None
    if not 0 <= value < count:
        raise FormatError(f"{key} is {value}, but the vocabulary has the ids 0 to {count - 1}")
    return value


def _special_ids(
    metadata: Mapping[str, Any], kind: Kind, count: int, control: Mapping[str, int], pre: PreTokenizer | None
) -> SpecialIds:
    """Ids with a role, where the file is silent those that its kind of tokenizer always had."""

    def named(name: str, default: int | None = None) -> int | None:
        return _token_id(metadata, f"tokenizer.ggml.{name}_token_id", count, default)

    if kind == "sentencepiece":
        bos, eos, unk = named("bos", 1), named("eos", 2), named("unknown", 0)
    elif kind == "wordpiece":  # [CLS] and [SEP] stand around a text; the misspelt key is the one files have
        bos = named("cls", named("bos", 101))
        eos = named("seperator", named("eos", 102))
        unk = named("unknown", 100)
        if unk is None:
            raise FormatError("the file has no usable tokenizer.ggml.unknown_token_id, which WordPiece needs")
    else:
        bos, eos, unk = named("bos"), named("eos"), named("unknown")
    adds_bos = kind != "bpe" or (pre is not None and pre.adds_bos)
    adds_bos = _adds(metadata, "bos", bos, adds_bos)
    adds_eos = _adds(metadata, "eos", eos, kind == "wordpiece")
    stop = stop_ids(control, (eos, named("eot"), named("eom")))
    return SpecialIds(bos, eos, unk, stop, adds_bos, adds_eos)


def _adds(metadata: Mapping[str, Any], name: str, token_id: int | None, default: bool) -> bool:
    key = f"tokenizer.ggml.add_{name}_token"
    wanted = _flag(metadata, key, default)
    if wanted and token_id is None and key in metadata:
        raise FormatError(f"{key} is true, but the file has no tokenizer.ggml.{name}_token_id")
    return wanted and token_id is not None
