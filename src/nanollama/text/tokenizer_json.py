"""A Hugging Face tokenizer.json: a path goes in, a ``Vocabulary`` and the segmenter for its plain text come
out.

Added tokens are taken out of the pipeline and matched by our own code, as for GGUF, so that text becomes a
control token only where that is asked for. What is left (normalizer, pre-tokenizer, model) runs in the
``tokenizers`` library as the file has it. Its regular expressions are the file's own and a hostile one can
take exponential time, which a GGUF file can't do: load a tokenizer.json only from where you would load
weights.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nanollama.errors import FormatError, ModelNotFoundError, UnsupportedError
from nanollama.text.segmenters import SPACE, LibrarySegmenter
from nanollama.text.vocab import AddedFlags, Kind, SpecialIds, TokenType, Vocabulary, split_added, stop_ids

_MAX_TOKENS = 1 << 22  # ids above would make the token table larger than any real vocabulary
_BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>\Z")
_CONTINUES = "##"  # WordPiece's mark for a piece inside a word

Json = dict[str, Any]


def read_tokenizer_json(path: Path) -> tuple[Vocabulary, LibrarySegmenter]:
    """The tokenizer in the file ``path``, with tokenizer_config.json beside it if there is one.

    Raises ModelNotFoundError, FormatError for a malformed file and UnsupportedError for a model other than
    BPE and WordPiece.
    """
    spec = _read(path)
    config_path = path.parent / "tokenizer_config.json"
    config = _read(config_path) if config_path.exists() else {}
    model = _entry(spec, "model", dict, path)
    kind = _kind(spec, model, path)
    added = spec.get("added_tokens") or []
    ids = _ids(model, added, path)
    tokens, types, flags = _table(ids, added, model, kind)
    control, user_defined = split_added(tokens, types, kind)
    special = _special_ids(spec, config, ids, control)
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
    return vocabulary, _segmenter(spec, model, control, path)


def _read(path: Path) -> Json:
    try:
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise ModelNotFoundError(
            f"there is no file {path}, but a tokenizer.json is expected there"
        ) from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise FormatError(f"{path.name} is not valid JSON ({error}); download it again") from error
    if not isinstance(found, dict):
        raise FormatError(f"{path.name} holds {found!r:.60}, but a JSON object is expected")
    return found


def _entry(spec: Json, key: str, kind: type, path: Path) -> Any:
    value = spec.get(key)
    if not isinstance(value, kind):
        raise FormatError(f"{key} in {path.name} is {value!r:.60}, but a {kind.__name__} is expected")
    return value


def _kind(spec: Json, model: Json, path: Path) -> Kind:
    name = model.get("type") or ("BPE" if "merges" in model else None)
    if name == "WordPiece":
        return "wordpiece"
    if name == "BPE":
        mentioned = _types(spec.get("pre_tokenizer")) | _types(spec.get("decoder"))
        return "bpe" if "ByteLevel" in mentioned else "sentencepiece"
    raise UnsupportedError(
        f"model.type in {path.name} is {name!r:.60}, which is not supported; expected BPE or WordPiece"
    )


def _steps(stage: Any) -> list[Json]:
    """The steps of a normalizer, pre-tokenizer, decoder or post-processor, nested sequences laid flat."""
    if not isinstance(stage, dict):
        return []
    inner = next(
        (stage[key] for key in ("normalizers", "pretokenizers", "decoders", "processors") if key in stage),
        None,
    )
    return [stage] if inner is None else [step for part in inner for step in _steps(part)]


def _types(stage: Any) -> set[str]:
    return {str(step.get("type")) for step in _steps(stage)}


def _ids(model: Json, added: list[Json], path: Path) -> dict[str, int]:
    """Text -> id of every token, added ones last."""
    ids: dict[str, int] = dict(_entry(model, "vocab", dict, path))
    for token in added:
        text, token_id = token.get("content"), token.get("id")
        if not isinstance(text, str) or not text or not isinstance(token_id, int):
            raise FormatError(
                f"added_tokens in {path.name} has {token!r:.100}, but a content and an id are expected"
            )
        ids[text] = token_id
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
    ids: Mapping[str, int], added: list[Json], model: Json, kind: Kind
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
        token_id = token["id"]
        tokens[token_id] = token["content"]
        types[token_id] = int(TokenType.CONTROL if token.get("special") else TokenType.USER_DEFINED)
        found = AddedFlags(*(bool(token.get(name)) for name in ("lstrip", "rstrip", "single_word")))
        if found != AddedFlags():
            flags[token_id] = found
    return tokens, types, flags


def _special_ids(spec: Json, config: Json, ids: Mapping[str, int], control: Mapping[str, int]) -> SpecialIds:
    """From tokenizer_config.json where it speaks, else from what the post-processor puts around a text."""

    def configured(key: str) -> str | None:
        value = config.get(key)
        text = value.get("content") if isinstance(value, dict) else value
        return text if isinstance(text, str) else None

    before, after = _around(spec.get("post_processor"))
    bos, eos = configured("bos_token") or before, configured("eos_token") or after
    unk = configured("unk_token") or spec["model"].get("unk_token")
    found = {}
    for name, text in (("bos_token", bos), ("eos_token", eos), ("unk_token", unk)):
        if text is not None and text not in ids:
            raise FormatError(f"{name} is {text!r:.60}, but the vocabulary has no such token")
        found[name] = None if text is None else ids[text]
    adds_bos = config.get("add_bos_token", before is not None and before == bos)
    adds_eos = config.get("add_eos_token", after is not None and after == eos)
    bos_id, eos_id = found["bos_token"], found["eos_token"]
    return SpecialIds(
        bos=bos_id,
        eos=eos_id,
        unk=found["unk_token"],
        stop=stop_ids(control, (eos_id,)),
        adds_bos=bool(adds_bos) and bos_id is not None,
        adds_eos=bool(adds_eos) and eos_id is not None,
    )


def _around(post_processor: Any) -> tuple[str | None, str | None]:
    """The special token the post-processor puts before a text, and the one after it."""
    for step in _steps(post_processor):
        if step.get("type") in ("BertProcessing", "RobertaProcessing"):
            return step["cls"][0], step["sep"][0]
        if step.get("type") == "TemplateProcessing":
            items = [item.get("SpecialToken", {}).get("id") for item in step["single"]]
            if None in items:
                middle = items.index(None)
                return (items[middle - 1] if middle else None), next(iter(items[middle + 1 :]), None)
    return None, None


def _prefixes_space(spec: Json) -> bool:
    steps = _steps(spec.get("normalizer")) + _steps(spec.get("pre_tokenizer"))
    return any(
        (step.get("type") == "Prepend" and step.get("prepend") == SPACE)
        or (step.get("type") == "Metaspace" and step.get("prepend_scheme", "always") != "never")
        for step in steps
    )


def _segmenter(spec: Json, model: Json, control: Mapping[str, int], path: Path) -> LibrarySegmenter:
    """The pipeline without added tokens; if only the start of a text gets a space, a second one for the
    rest.
    """
    from tokenizers import Tokenizer

    kept = {text: token_id for text, token_id in model["vocab"].items() if text not in control}
    unknown = model.get("unk_token")
    if unknown in model["vocab"]:
        kept[unknown] = model["vocab"][unknown]
    bare: Json = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": spec.get("normalizer"),
        "pre_tokenizer": spec.get("pre_tokenizer"),
        "post_processor": None,
        "decoder": None,
        "model": {**model, "vocab": kept},
    }
    if "merges" in model:
        bare["model"]["merges"] = [merge for merge in model["merges"] if not _makes_control(merge, control)]
    try:
        outer = Tokenizer.from_str(json.dumps(bare))
        first_only = [step for step in _steps(bare["pre_tokenizer"]) if step.get("prepend_scheme") == "first"]
        if not first_only:
            return LibrarySegmenter(outer)
        for step in first_only:
            step["prepend_scheme"] = "never"
        return LibrarySegmenter(outer, Tokenizer.from_str(json.dumps(bare)))
    except Exception as error:  # the library raises bare exceptions
        raise FormatError(
            f"{path.name} cannot be read as a tokenizer ({error}); download it again"
        ) from error


def _makes_control(merge: Any, control: Mapping[str, int]) -> bool:
    pieces = merge.split(" ") if isinstance(merge, str) else merge
    return "".join(pieces) in control or any(piece in control for piece in pieces)
