"""Which files of a repository make the model: a list of files in, those to fetch out.

GGUF is preferred, one quantization of it, with all parts of a split file; otherwise the configuration, the
tokenizer and the safetensors. Nothing that could run is chosen, and a name that is not one plain file name
is refused.
"""

import re
from collections.abc import Iterable, Sequence

from nanollama.store.hub import HubEntry
from nanollama.store.transfer import SourceError

DEFAULT_QUANTS = ("Q4_K_M", "Q8_0")
_QUANT = re.compile(
    r"(?:^|[-._])((?:UD-)?(?:I?Q[1-9](?:_[0-9A-Z]+)*|TQ[12]_0|MXFP4(?:_MOE)?|BF16|FP?16|FP?32))$", re.I
)
_SPLIT = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})", re.ASCII)
_NOT_MODELS = re.compile(r"mmproj|imatrix", re.I)
_SHARD = re.compile(r"model-([0-9]{5})-of-([0-9]{5})\.safetensors", re.ASCII)
_INDEX = "model.safetensors.index.json"
_BESIDE = frozenset(
    {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "tokenizer.model",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "vocab.txt",
        "merges.txt",
        "chat_template.jinja",
        "chat_template.json",
    }
)
"""What a folder of safetensors needs beside them, as far as it is there."""

_MAX_PARTS = 1000
_MAX_NAME = 200
_MAX_SMALL_BYTES = 256 << 20
"""No configuration or tokenizer is larger."""


def choose_gguf(files: Sequence[HubEntry], quant: str | None) -> tuple[HubEntry, ...]:
    """The one file of ``quant`` or all its parts in order; without ``quant``, the usual one.

    Empty if there is no GGUF file at all. Raises ``SourceError`` if the choice is not clear.
    """
    groups: dict[str, list[HubEntry]] = {}
    for file in files:
        if file.path.lower().endswith(".gguf") and not _NOT_MODELS.search(file.path):
            stem = _checked_name(file.path)[: -len(".gguf")]
            whole = match[1] if (match := _SPLIT.fullmatch(stem)) else stem
            groups.setdefault(whole, []).append(file)
    if not groups:
        return ()
    return _all_parts(groups[_choose_group(list(groups), quant)])


def quant_of(stem: str) -> str | None:
    """The quantization that a file's name, without its ending, states last: ``Q4_K_M``."""
    return match[1].upper() if (match := _QUANT.search(stem)) else None


def choose_safetensors(files: Sequence[HubEntry]) -> tuple[HubEntry, ...]:
    """The files of a checkpoint in the repository's main folder. Raises ``SourceError`` if it is no model."""
    here = {file.path: file for file in files if "/" not in file.path and "\\" not in file.path}
    if "config.json" not in here:
        raise SourceError("the repository has neither a GGUF file nor a config.json")
    shards = sorted(name for name in here if _SHARD.fullmatch(name))
    if _INDEX in here and shards:
        total = int(_SHARD.fullmatch(shards[0])[2])  # type: ignore[index]  # it matched above
        expected = [f"model-{n:05}-of-{total:05}.safetensors" for n in range(1, min(total, _MAX_PARTS) + 1)]
        if shards != expected:
            raise SourceError(f"the repository has {len(shards)} of {total} parts of its safetensors")
        weights = [_INDEX, *shards]
    elif "model.safetensors" in here:
        weights = ["model.safetensors"]
    else:
        raise SourceError("the repository has no GGUF file and no model.safetensors")
    beside = sorted(_BESIDE & here.keys())
    for name in (*beside, _INDEX):
        if name in here and here[name].size > _MAX_SMALL_BYTES:
            raise SourceError(f"its {name} is larger than {_MAX_SMALL_BYTES >> 20} MiB")
    _refuse_duplicates(file.path for file in files if file.path in {*beside, *weights})
    return tuple(here[name] for name in (*beside, *weights))


def _choose_group(stems: list[str], quant: str | None) -> str:
    by_quant: dict[str, list[str]] = {}
    for stem in stems:
        by_quant.setdefault(quant_of(stem) or "", []).append(stem)
    if quant is None:
        quant = next((usual for usual in DEFAULT_QUANTS if usual in by_quant), None)
        if quant is None and len(stems) == 1:
            return stems[0]
    elif named := [stem for stem in stems if stem.lower() == quant.lower()]:
        return named[0]
    offered = ", ".join(sorted(by_quant.keys() - {""})[:20]) or "none that their names state"
    found = by_quant.get(quant.upper(), []) if quant else []
    if not found:
        wanted = quant or " or ".join(DEFAULT_QUANTS)
        raise SourceError(f"the repository has no GGUF file of quantization {wanted}, but {offered}")
    if len(found) > 1:
        shown = ", ".join(sorted(found)[:4])
        raise SourceError(f"the repository has several files of quantization {quant}; name one: {shown}")
    return found[0]


def _all_parts(group: list[HubEntry]) -> tuple[HubEntry, ...]:
    names = sorted(_checked_name(file.path) for file in group)
    if len(set(names)) != len(names):
        raise SourceError(f"the repository has {names[0]} more than once")
    match = _SPLIT.fullmatch(names[0][: -len(".gguf")])
    if match and int(match[3]) != len(names):
        raise SourceError(f"the repository has {len(names)} of {int(match[3])} parts of {match[1]}")
    if len(names) > _MAX_PARTS or (match is None and len(names) > 1):
        raise SourceError(f"the parts of {names[0]} do not belong together")
    return tuple(sorted(group, key=lambda file: file.path.rpartition("/")[2]))


def _checked_name(path: str) -> str:
    """The last part of ``path``, if it is a plain file name and all before it plain folder names."""
    parts = path.split("/")
    for part in parts:
        plain = part.isascii() and part.isprintable() and not set(part) & set('\\:*?"<>|')
        if not plain or part in {"", ".", ".."} or len(part) > _MAX_NAME or part[0] in ". -":
            raise SourceError(f"the repository has a file with an unsafe name ({path[:80]!a})")
    return parts[-1]


def _refuse_duplicates(paths: Iterable[str]) -> None:
    seen: set[str] = set()
    for path in paths:
        if path in seen:
            raise SourceError(f"the repository has {path} more than once")
        seen.add(path)
