"""What the small files beside a tokenizer say: a model folder in; special tokens, further tokens and the chat
template out.

They are ``tokenizer_config.json``, ``special_tokens_map.json``, ``added_tokens.json`` and the template files,
in the precedence of transformers. A missing file says nothing. ``clean_up_tokenization_spaces`` is not
followed: it takes spaces out of what the model wrote, and transformers itself no longer does so for BPE.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nanollama.errors import FormatError
from nanollama.formats.strict_json import Json, read_bytes, read_object

_MAX_TEMPLATE_BYTES = 1 << 20
_MAX_ADDED_BYTES = 16 << 20
_ROLES = ("bos_token", "eos_token", "unk_token")


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token that stands outside the model's merges. A special one steers the model."""

    text: str
    id: int
    special: bool
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


@dataclass(frozen=True, slots=True)
class TokenizerSettings:
    """``None``: the files don't say. ``added`` is in the order of ids.

    ``legacy``: a SentencePiece model puts a space before the text after a special token too.
    """

    bos: str | None = None
    eos: str | None = None
    unk: str | None = None
    adds_bos: bool | None = None
    adds_eos: bool | None = None
    legacy: bool | None = None
    added: tuple[AddedToken, ...] = ()
    chat_template: str | None = field(default=None, repr=False)


def read_settings(folder: Path) -> TokenizerSettings:
    """The settings of the tokenizer in ``folder``.

    Raises:
        FormatError: a file is malformed; the message names it and the key.
    """
    config = _optional(folder / "tokenizer_config.json")
    fallback = _optional(folder / "special_tokens_map.json")
    named = {role: _text_of(config, role) or _text_of(fallback, role) for role in _ROLES}
    added = _added(config, folder)
    return TokenizerSettings(
        bos=named["bos_token"],
        eos=named["eos_token"],
        unk=named["unk_token"],
        adds_bos=_flag(config, "add_bos_token"),
        adds_eos=_flag(config, "add_eos_token"),
        legacy=_flag(config, "legacy"),
        added=_with_older(
            added, folder / "added_tokens.json", special=frozenset(filter(None, named.values()))
        ),
        chat_template=_chat_template(config, folder),
    )


def added_token(entry: object, token_id: object, where: str) -> AddedToken:
    """One entry of ``added_tokens`` or ``added_tokens_decoder``.

    Raises:
        FormatError: it is malformed; the message names ``where`` it is.
    """
    text = entry.get("content") if isinstance(entry, dict) else None
    if not isinstance(entry, dict) or not isinstance(text, str) or not text or type(token_id) is not int:
        raise FormatError(f"{where} has {entry!r:.100}, but a content and an id are expected")
    flags = {name: entry.get(name, False) for name in ("special", "lstrip", "rstrip", "single_word")}
    if not all(isinstance(flag, bool) for flag in flags.values()):
        raise FormatError(f"{where} has {entry!r:.200}, whose flags are not all true or false")
    return AddedToken(text, token_id, **flags)


def _optional(path: Path) -> Json:
    return read_object(path, _MAX_ADDED_BYTES) if path.exists() else {}


def _text_of(config: Mapping[str, object], key: str) -> str | None:
    """The text of a special token, which stands there alone or as an object with its flags."""
    value = config.get(key)
    text = value.get("content") if isinstance(value, dict) else value
    if text is not None and not isinstance(text, str):
        raise FormatError(f"{key} beside the tokenizer is {value!r:.60}, but a token is expected")
    return text or None


def _flag(config: Mapping[str, object], key: str) -> bool | None:
    value = config.get(key)
    if value is not None and not isinstance(value, bool):
        raise FormatError(f"{key} in tokenizer_config.json is {value!r:.60}, but true or false is expected")
    return value


def _added(config: Json, folder: Path) -> list[AddedToken]:
    entries = config.get("added_tokens_decoder", {})
    where = "added_tokens_decoder in tokenizer_config.json"
    if not isinstance(entries, dict):
        raise FormatError(f"{where} is {entries!r:.60}, but an object is expected")
    return [
        added_token(entry, int(key) if key.isascii() and key.isdecimal() and len(key) < 10 else key, where)
        for key, entry in entries.items()
    ]


def _with_older(found: list[AddedToken], path: Path, special: frozenset[str]) -> tuple[AddedToken, ...]:
    """``found`` and what only ``added_tokens.json``, the older form, names."""
    known = {token.text for token in found}
    for text, token_id in _optional(path).items():
        if text not in known:
            entry = {"content": text, "special": text in special}
            found.append(added_token(entry, token_id, path.name))
    return tuple(sorted(found, key=lambda token: token.id))


def _chat_template(config: Json, folder: Path) -> str | None:
    """The template for a conversation: a file of its own goes before an entry of tokenizer_config.json."""
    templates = _named_templates(config.get("chat_template"))
    older = folder / "chat_template.json"
    if older.exists():
        templates = _named_templates(_optional(older).get("chat_template")) or templates
    files = {}
    if (path := folder / "chat_template.jinja").exists():
        files["default"] = path
    for path in sorted((folder / "chat_templates").glob("*.jinja")):
        files[path.stem] = path
    if files:
        templates = {name: _template_file(path) for name, path in files.items()}
    if len(templates) == 1:
        return next(iter(templates.values()))
    if templates and "default" not in templates:
        raise FormatError(
            f"the model has the chat templates {', '.join(sorted(templates))} and none is named default; "
            "name one of them so"
        )
    return templates.get("default")


def _named_templates(value: object) -> dict[str, str]:
    if value is None:
        return {}
    if isinstance(value, str):
        return {"default": value}
    if isinstance(value, list) and all(
        isinstance(item, dict) and isinstance(item.get("name"), str) and isinstance(item.get("template"), str)
        for item in value
    ):
        return {item["name"]: item["template"] for item in value}
    raise FormatError(
        f"chat_template in tokenizer_config.json is {value!r:.60}; expected a text or a list of names "
        "and texts"
    )


def _template_file(path: Path) -> str:
    try:
        return read_bytes(path, _MAX_TEMPLATE_BYTES).decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"{path.name} is not UTF-8 text ({error}); fetch it again") from None
