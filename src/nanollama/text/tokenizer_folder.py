"""The tokenizer of a Hugging Face model folder: the folder goes in, a ``Vocabulary`` of exactly the model's
size and its segmenter come out.

A tokenizer.json goes before a SentencePiece tokenizer.model, as in transformers. Ids that the model has
beyond the tokenizer's are tokens without text; special tokens beyond the model's are left out.
"""

from dataclasses import replace
from pathlib import Path

from nanollama.errors import FormatError, UnsupportedError
from nanollama.formats.strict_json import read_bytes
from nanollama.text.segmenters import Segmenter, SentencePieceSegmenter
from nanollama.text.sentencepiece_model import parse_sentencepiece
from nanollama.text.tokenizer_json import read_tokenizer_json
from nanollama.text.tokenizer_settings import TokenizerSettings
from nanollama.text.vocab import AddedFlags, SpecialIds, TokenType, Vocabulary, split_added, stop_ids

_MAX_MODEL_BYTES = 64 << 20
_OTHERS = ("tekken.json", "vocab.json", "tiktoken.model", "qwen.tiktoken", "vocab.txt", "spiece.model")


def read_tokenizer_folder(
    folder: Path, settings: TokenizerSettings, vocab_size: int | None, stop: frozenset[int]
) -> tuple[Vocabulary, Segmenter]:
    """The tokenizer of the model in ``folder``; see ``Tokenizer.from_folder``."""
    vocabulary: Vocabulary
    segmenter: Segmenter
    if (path := folder / "tokenizer.json").exists():
        vocabulary, segmenter = read_tokenizer_json(path, settings)
    elif (path := folder / "tokenizer.model").exists():
        vocabulary = _sentencepiece(path, settings)
        segmenter = SentencePieceSegmenter(vocabulary, prefix_inside=settings.legacy is not False)
    else:
        found = next((name for name in _OTHERS if (folder / name).exists()), None)
        there = f"there is only {found}, which is not read; " if found else ""
        raise (UnsupportedError if found else FormatError)(
            f"{folder.name} has no tokenizer.json and no tokenizer.model; {there}get one of them from the "
            "model's repository, or have transformers save the tokenizer again"
        )
    if vocab_size is not None:
        vocabulary = _fitted(vocabulary, vocab_size, path)
    count = len(vocabulary.tokens)
    if wrong := sorted(number for number in stop if not 0 <= number < count):
        raise FormatError(f"eos_token_id is {wrong[0]}, but the vocabulary has the ids 0 to {count - 1}")
    special = replace(vocabulary.special, stop=vocabulary.special.stop | stop)
    return replace(vocabulary, special=special), segmenter


def _fitted(vocabulary: Vocabulary, size: int, path: Path) -> Vocabulary:
    """``vocabulary`` with ``size`` tokens."""
    count = len(vocabulary.tokens)
    if count <= size:
        padding = range(count, size)
        return replace(
            vocabulary,
            tokens=[*vocabulary.tokens, *(f"[PAD{index}]" for index in padding)],
            types=[*vocabulary.types, *(int(TokenType.UNUSED) for _ in padding)],
        )
    beyond = vocabulary.types[size:]
    roles = (vocabulary.special.bos, vocabulary.special.eos, vocabulary.special.unk)
    if int(TokenType.NORMAL) in beyond or any(role is not None and role >= size for role in roles):
        raise FormatError(
            f"{path.name} has {count} tokens, but the model knows {size}: they do not belong together; fetch "
            "the folder again"
        )
    return replace(
        vocabulary,
        tokens=vocabulary.tokens[:size],
        types=vocabulary.types[:size],
        control={text: number for text, number in vocabulary.control.items() if number < size},
        user_defined={text: number for text, number in vocabulary.user_defined.items() if number < size},
        flags={number: flags for number, flags in vocabulary.flags.items() if number < size},
        special=replace(
            vocabulary.special, stop=frozenset(number for number in vocabulary.special.stop if number < size)
        ),
    )


def _sentencepiece(path: Path, settings: TokenizerSettings) -> Vocabulary:
    """The vocabulary that a GGUF file made from the same tokenizer.model has."""
    model = parse_sentencepiece(read_bytes(path, _MAX_MODEL_BYTES))
    tokens, types, scores = list(model.pieces), list(model.types), list(model.scores)
    flags = {}
    for token in settings.added:
        if token.id > len(tokens) or token.id < 0:
            raise FormatError(
                f"the added token {token.text!r:.60} has the id {token.id}, but {len(tokens)} is the next one"
            )
        if token.id == len(tokens):
            tokens.append(token.text)
            types.append(int(TokenType.CONTROL if token.special else TokenType.USER_DEFINED))
            scores.append(0.0)
        elif tokens[token.id] != token.text:
            tokens[token.id] = token.text
            types[token.id] = int(TokenType.CONTROL if token.special else TokenType.USER_DEFINED)
        found = AddedFlags(token.lstrip, token.rstrip, token.single_word)
        if found != AddedFlags():
            flags[token.id] = found
    ids = {text: index for index, text in enumerate(tokens)}
    if len(ids) != len(tokens):
        repeated = next(text for index, text in enumerate(tokens) if ids[text] != index)
        raise FormatError(f"the token {repeated!r:.60} of {path.name} occurs twice; tokens must differ")
    control, user_defined = split_added(tokens, types, "sentencepiece")
    bos = _role("bos_token", settings.bos, model.bos, ids)
    eos = _role("eos_token", settings.eos, model.eos, ids)
    special = SpecialIds(
        bos=bos,
        eos=eos,
        unk=_role("unk_token", settings.unk, model.unk, ids),
        stop=stop_ids(control, (eos,)),
        adds_bos=settings.adds_bos is not False and bos is not None,
        adds_eos=settings.adds_eos is True and eos is not None,
    )
    return Vocabulary(
        kind="sentencepiece",
        tokens=tokens,
        types=types,
        special=special,
        control=control,
        user_defined=user_defined,
        scores=scores,
        space_prefix=model.space_prefix,
        flags=flags,
    )


def _role(name: str, text: str | None, default: int | None, ids: dict[str, int]) -> int | None:
    if text is None:
        return default
    if text not in ids:
        raise FormatError(f"{name} is {text!r:.60}, but the vocabulary has no such token")
    return ids[text]
