"""A Hugging Face tokenizer.json: a path and the settings beside it go in, a ``Vocabulary`` and the segmenter
for its plain text come out.

Added tokens are taken out of the pipeline and matched by our own code, as for GGUF, so that text becomes a
control token only where that is asked for. What is left (normalizer, pre-tokenizer, model) runs in the
``tokenizers`` library as the file has it. Its regular expressions must be in the table of known ones.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nanollama.errors import FormatError, UnsupportedError
from nanollama.formats.strict_json import Json, read_object
from nanollama.text.pretokenizers import find_expression
from nanollama.text.segmenters import SPACE, LibrarySegmenter
from nanollama.text.tokenizer_settings import AddedToken, TokenizerSettings, added_token
from nanollama.text.unigram import Unigram, UnigramSegmenter, read_unigram
from nanollama.text.vocab import AddedFlags, Kind, SpecialIds, TokenType, Vocabulary, split_added, stop_ids

MAX_BYTES = 256 << 20  # the largest in use, of 262,144 tokens, has 33 MB
_MAX_TOKENS = 1 << 22  # ids above would make the token table larger than any real vocabulary
_BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>\Z")
_BPE_OPTIONS = ("unk_token", "fuse_unk", "byte_fallback", "ignore_merges")
_BPE_MARKS = ("continuing_subword_prefix", "end_of_word_suffix")
_CONTINUES = "##"  # WordPiece's mark for a piece inside a word


def read_tokenizer_json(path: Path, settings: TokenizerSettings) -> tuple[Vocabulary, LibrarySegmenter]:
    """The tokenizer in the file ``path``.

    Raises ModelNotFoundError, FormatError for a malformed file and UnsupportedError for a model other than
    BPE, Unigram and WordPiece, or an unknown regular expression.
    """
    spec = read_object(path, MAX_BYTES)
    model = _object(spec, "model", path)
    kind = _kind(spec, model, path)
    unigram = read_unigram(model, path.name) if model.get("type") == "Unigram" else None
    if unigram is not None:
        model = {**model, "vocab": unigram.vocab(), "unk_token": unigram.unk_text}
    added = _added(spec, settings, path)
    ids = _ids(model, added, path)
    tokens, types, flags = _table(ids, added, model, kind)
    control, user_defined = split_added(tokens, types, kind)
    special = _special_ids(spec | {"model": model}, settings, ids, control)
    vocabulary = Vocabulary(
        kind=kind,
        tokens=tokens,
        types=types,
        special=special,
        control=control,
        user_defined=user_defined,
        space_prefix=kind == "sentencepiece" and _prefixes_space(spec),
        flags=flags,
    )
    return vocabulary, _segmenter(spec, unigram or model, control, path)


def _added(spec: Json, settings: TokenizerSettings, path: Path) -> list[AddedToken]:
    """The added tokens of the file, then those that only the settings name."""
    entries = spec.get("added_tokens") or []
    where = f"added_tokens in {path.name}"
    if not isinstance(entries, list):
        raise FormatError(f"{where} is {entries!r:.60}, but a list is expected")
    found = [
        added_token(entry, entry.get("id") if isinstance(entry, dict) else None, where) for entry in entries
    ]
    known = {token.text for token in found}
    return found + [token for token in settings.added if token.text not in known]


def _object(spec: Json, key: str, path: Path) -> Json:
    value = spec.get(key)
    if not isinstance(value, dict):
        found = f"is {value!r:.60}" if key in spec else "is missing"
        raise FormatError(f"{key} in {path.name} {found}; expected an object; fetch it again")
    return value


def _kind(spec: Json, model: Json, path: Path) -> Kind:
    unknown = model.get("unk_token")
    if not isinstance(unknown, str | None):
        raise FormatError(f"model.unk_token in {path.name} is {unknown!r:.60}, but a token is expected")
    name = model.get("type") or ("BPE" if "merges" in model else None)
    if name == "WordPiece":
        return "wordpiece"
    if name == "Unigram":
        return "sentencepiece"
    if name == "BPE":
        if marks := [mark for mark in _BPE_MARKS if model.get(mark)]:
            raise UnsupportedError(
                f"model.{marks[0]} in {path.name} is {model[marks[0]]!r:.60}, which is not supported"
            )
        mentioned = _types(spec.get("pre_tokenizer")) | _types(spec.get("decoder"))
        return "bpe" if "ByteLevel" in mentioned else "sentencepiece"
    raise UnsupportedError(
        f"model.type in {path.name} is {name!r:.60}, which is not supported; expected BPE, Unigram or "
        "WordPiece"
    )


def steps(stage: Any) -> list[Json]:
    """The steps of a normalizer, pre-tokenizer, decoder or post-processor, nested sequences laid flat."""
    if not isinstance(stage, dict):
        return []
    inner = next(
        (stage[key] for key in ("normalizers", "pretokenizers", "decoders", "processors") if key in stage),
        None,
    )
    if not isinstance(inner, list):
        return [stage]
    return [step for part in inner for step in steps(part)]


def _types(stage: Any) -> set[str]:
    return {str(step.get("type")) for step in steps(stage)}


def _ids(model: Json, added: Sequence[AddedToken], path: Path) -> dict[str, int]:
    """Text -> id of every token, added ones last."""
    ids: dict[str, int] = dict(_object(model, "vocab", path))
    ids.update((token.text, token.id) for token in added)
    by_id: dict[int, str] = {}
    for text, token_id in ids.items():
        if type(token_id) is not int or not 0 <= token_id < _MAX_TOKENS:
            raise FormatError(
                f"the id of {text!r} in {path.name} is {token_id!r:.60}; expected 0 to {_MAX_TOKENS - 1}"
            )
        if by_id.setdefault(token_id, text) != text:
            raise FormatError(
                f"{text!r} and {by_id[token_id]!r} in {path.name} share the id {token_id}; ids must differ"
            )
    if not ids:
        raise FormatError(f"model.vocab in {path.name} is empty, but a tokenizer needs at least one token")
    return ids


def _table(
    ids: Mapping[str, int], added: Sequence[AddedToken], model: Json, kind: Kind
) -> tuple[list[str], list[int], dict[int, AddedFlags]]:
    """Texts and types by id, gaps unused; WordPiece pieces in GGUF's spelling."""
    count = max(ids.values()) + 1
    tokens = [f"[UNUSED_{index}]" for index in range(count)] if len(ids) < count else [""] * count
    types = [int(TokenType.UNUSED)] * count
    byte_fallback = bool(model.get("byte_fallback"))
    for text, token_id in ids.items():
        is_byte = byte_fallback and _BYTE_PIECE.match(text) is not None
        types[token_id] = int(TokenType.BYTE if is_byte else TokenType.NORMAL)
        if kind == "wordpiece":
            text = text[len(_CONTINUES) :] if text.startswith(_CONTINUES) else SPACE + text
        tokens[token_id] = text
    flags = {}
    for token in added:
        tokens[token.id] = token.text
        types[token.id] = int(TokenType.CONTROL if token.special else TokenType.USER_DEFINED)
        found = AddedFlags(token.lstrip, token.rstrip, token.single_word)
        if found != AddedFlags():
            flags[token.id] = found
    return tokens, types, flags


def _special_ids(
    spec: Json, settings: TokenizerSettings, ids: Mapping[str, int], control: Mapping[str, int]
) -> SpecialIds:
    """From the settings where they speak, else from what the post-processor puts around a text."""
    before, after = _around(spec.get("post_processor"))
    bos, eos = settings.bos or before, settings.eos or after
    unk = settings.unk or spec["model"].get("unk_token")
    found = {}
    for name, text in (("bos_token", bos), ("eos_token", eos), ("unk_token", unk)):
        if text is not None and text not in ids:
            raise FormatError(f"{name} is {text!r:.60}, but the vocabulary has no such token")
        found[name] = None if text is None else ids[text]
    adds_bos = before is not None and before == bos if settings.adds_bos is None else settings.adds_bos
    adds_eos = after is not None and after == eos if settings.adds_eos is None else settings.adds_eos
    bos_id, eos_id = found["bos_token"], found["eos_token"]
    return SpecialIds(
        bos=bos_id,
        eos=eos_id,
        unk=found["unk_token"],
        stop=stop_ids(control, (eos_id,)),
        adds_bos=adds_bos and bos_id is not None,
        adds_eos=adds_eos and eos_id is not None,
    )


def _around(post_processor: Any) -> tuple[str | None, str | None]:
    """The special token the post-processor puts before a text, and the one after it."""
    for step in steps(post_processor):
        if step.get("type") in ("BertProcessing", "RobertaProcessing"):
            return _first_text(step.get("cls")), _first_text(step.get("sep"))
        if step.get("type") == "TemplateProcessing" and isinstance(step.get("single"), list):
            items = [_special_text(item) for item in step["single"]]
            if None in items:
                middle = items.index(None)
                return (items[middle - 1] if middle else None), next(iter(items[middle + 1 :]), None)
    return None, None


def _first_text(pair: Any) -> str | None:
    return pair[0] if isinstance(pair, list) and pair and isinstance(pair[0], str) else None


def _special_text(item: Any) -> str | None:
    """The special token that an item of a template is; ``None`` for the text itself."""
    special = item.get("SpecialToken") if isinstance(item, dict) else None
    text = special.get("id") if isinstance(special, dict) else None
    return text if isinstance(text, str) else None


def _prefixes_space(spec: Json) -> bool:
    found = steps(spec.get("normalizer")) + steps(spec.get("pre_tokenizer"))
    return any(
        (step.get("type") == "Prepend" and step.get("prepend") == SPACE)
        or (step.get("type") == "Metaspace" and _prepends(step))
        for step in found
    )


def _prepends(metaspace: Json) -> bool:
    """Whether this step puts a space before a text; files of before ``prepend_scheme`` say it by a flag."""
    if "prepend_scheme" in metaspace:
        return bool(metaspace["prepend_scheme"] != "never")
    return metaspace.get("add_prefix_space") is not False


def _segmenter(spec: Json, model: Json | Unigram, control: Mapping[str, int], path: Path) -> LibrarySegmenter:
    """The pipeline without added tokens; if only the start of a text gets a space, a second one for the
    rest.
    """
    from tokenizers import Tokenizer

    bare: Json = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": spec.get("normalizer"),
        "pre_tokenizer": spec.get("pre_tokenizer"),
        "post_processor": None,
        "decoder": None,
        "model": {"type": "BPE", "vocab": {}, "merges": []},
    }
    _check_expressions(bare, path)
    try:
        outer, inner = Tokenizer.from_str(json.dumps(bare)), None
        outer.model, ids = (
            model.model(control) if isinstance(model, Unigram) else (_by_library(model, control), None)
        )
        first_only = [step for step in steps(bare["pre_tokenizer"]) if step.get("prepend_scheme") == "first"]
        for step in first_only:
            step["prepend_scheme"] = "never"
        if first_only:
            inner = Tokenizer.from_str(json.dumps(bare))
            inner.model = outer.model
        return LibrarySegmenter(outer, inner) if ids is None else UnigramSegmenter(ids, outer, inner)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises bare exceptions, and a panic is no Exception
        raise FormatError(
            f"{path.name} cannot be read as a tokenizer ({error}); download it again"
        ) from error


def _by_library(model: Json, control: Mapping[str, int]) -> Any:
    """The library's BPE or WordPiece model, without control tokens but the one for what is unknown."""
    from tokenizers import Tokenizer

    vocab = {text: token_id for text, token_id in model["vocab"].items() if text not in control}
    unknown = model.get("unk_token")
    if unknown in model["vocab"]:
        vocab[unknown] = model["vocab"][unknown]
    if "merges" in model:
        return _bpe(model, vocab, control)
    return Tokenizer.from_str(json.dumps({"added_tokens": [], "model": {**model, "vocab": vocab}})).model


def _bpe(model: Json, vocab: dict[str, int], control: Mapping[str, int]) -> Any:
    """The model that merges, handed over as Python objects: twice as fast as writing it as JSON again."""
    from tokenizers import models

    merges = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]]
    # The library panics on some merges of unknown pieces, and says so on standard error.
    usable = [
        merge
        for merge in merges
        if len(merge) == 2 and merge[0] in vocab and merge[1] in vocab and merge[0] + merge[1] in vocab
    ]
    if len(usable) < len(merges):
        for merge in set(merges) - set(usable):
            if "".join(merge) not in control and not any(piece in control for piece in merge):
                raise ValueError(f"the merge {merge!r:.100} is not of two tokens that make a third")
    options = {name: model[name] for name in _BPE_OPTIONS if model.get(name) is not None}
    return models.BPE(vocab, usable, **options)


def _check_expressions(spec: Json, path: Path) -> None:
    """Put the table's expression in the place of each one that the file brings."""
    for step in steps(spec["normalizer"]) + steps(spec["pre_tokenizer"]):
        pattern = step.get("pattern")
        if not isinstance(pattern, dict) or "Regex" not in pattern:
            continue
        known = find_expression(str(pattern["Regex"]))
        if known is None:
            raise UnsupportedError(
                f"{path.name} cuts text by the regular expression {pattern['Regex']!r:.200}, which is not in "
                "the table of known ones; a strange expression could take time without end, so it is not run"
            )
        pattern["Regex"] = known
