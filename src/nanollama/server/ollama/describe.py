"""Models as Ollama's clients read them: what was found on disk in, objects of ``tags``, ``ps``, ``show`` out.

The details come from the header of a file, which is read once for each file and state of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from nanollama.errors import NanollamaError
from nanollama.server.ollama.durations import expiry_text, moment_text
from nanollama.server.pool import Resident
from nanollama.server.problems import JSON
from nanollama.server.source import Found
from nanollama.store.recipe import Recipe, recipe_to_json

LONG_ARRAY = 16
"""Lists of metadata beyond this length are shown only to those who ask for everything."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the files of a model say. ``tensors`` holds name, type and shape of each."""

    format: str
    family: str = ""
    parameters: int = 0
    quantization: str = ""
    context_length: int | None = None
    embedding_length: int | None = None
    template: str = ""
    info: Mapping[str, Any] = field(default_factory=dict)
    tensors: tuple[JSON, ...] = ()


def facts_of(found: Found) -> Facts:
    """The facts of a model; of a file that can't be read only its format."""
    try:
        stamp = found.path.stat().st_mtime_ns
    except OSError:
        return Facts("gguf")
    return _facts(found.path, stamp)


@lru_cache(maxsize=256)
def _facts(path: Path, _stamp: int) -> Facts:
    is_folder = path.is_dir()
    try:
        return _of_folder(path) if is_folder else _of_gguf(path)
    except (NanollamaError, OSError, ValueError):
        return Facts("safetensors" if is_folder else "gguf")


def _of_gguf(path: Path) -> Facts:
    from nanollama.formats.gguf import GGUFFile

    file = GGUFFile(path)
    try:
        info = {key: _plain(value) for key, value in file.metadata.items()}
        family = str(info.get("general.architecture", ""))
        tensors = [_tensor(each.name, each.fmt.name, each.shape) for each in file.tensors.values()]
    finally:
        file.close()
    return Facts(
        "gguf",
        family,
        _count(tensors),
        _most_common(tensors),
        _whole(info.get(f"{family}.context_length")),
        _whole(info.get(f"{family}.embedding_length")),
        str(info.get("tokenizer.chat_template", "")),
        {**info, "general.parameter_count": _count(tensors)},
        tuple(tensors),
    )


def _of_folder(path: Path) -> Facts:
    from nanollama.formats.details import read_details

    details = read_details(path)
    family = details.architecture or ""
    info = {
        "general.architecture": family,
        "general.parameter_count": details.parameters,
        f"{family}.context_length": details.context_length,
        f"{family}.embedding_length": details.embedding_length,
    }
    return Facts(
        "safetensors",
        family,
        details.parameters,
        details.quantization or "",
        details.context_length,
        details.embedding_length,
        details.template or "",
        info,
        tuple(_tensor(each.name, each.type, each.shape) for each in details.tensors),
    )


def _tensor(name: str, kind: str, shape: tuple[int, ...]) -> JSON:
    return {"name": name, "type": kind, "shape": list(shape)}


def _plain(value: Any) -> Any:
    """A value that JSON can say: text that is not UTF-8 loses what it can't."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not -1e308 < value < 1e308:
        return None
    return value


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _count(tensors: list[JSON]) -> int:
    total = 0
    for tensor in tensors:
        size = 1
        for length in tensor["shape"]:
            size *= length
        total += size
    return total


def _most_common(tensors: list[JSON]) -> str:
    """The type that most of the weights have."""
    sizes: dict[str, int] = {}
    for tensor in tensors:
        sizes[tensor["type"]] = sizes.get(tensor["type"], 0) + _count([tensor])
    return max(sizes, key=lambda kind: sizes[kind], default="")


def parameter_size(count: int) -> str:
    """A number of weights as Ollama writes it: ``134.52M``, ``1.2B``."""
    if count >= 10**9:
        return f"{count / 1e9:.1f}B"
    if count >= 10**6:
        return f"{count / 1e6:.2f}M"
    return f"{count / 1e3:.2f}K" if count >= 1000 else str(count)


def details_of(found: Found) -> JSON:
    facts = facts_of(found)
    parent = found.record.parent if found.record is not None else None
    return {
        "parent_model": parent or "",
        "format": facts.format,
        "family": facts.family,
        "families": [facts.family] if facts.family else [],
        "parameter_size": parameter_size(facts.parameters) if facts.parameters else "",
        "quantization_level": facts.quantization,
        "context_length": facts.context_length,
        "embedding_length": facts.embedding_length,
    }


def tag_of(found: Found) -> JSON:
    """An entry of ``/api/tags``."""
    return {
        "name": found.id,
        "model": found.id,
        "modified_at": moment_text(found.modified),
        "size": found.size,
        "digest": found.digest,
        "details": details_of(found),
        "capabilities": ["completion"],
    }


def running_of(resident: Resident) -> JSON:
    """An entry of ``/api/ps``."""
    found = resident.found
    return {
        "name": found.id,
        "model": found.id,
        "size": found.size,
        "digest": found.digest,
        "details": details_of(found),
        "expires_at": expiry_text(resident.expires_s),
        "size_vram": 0 if resident.llm.device == "cpu" else found.size,
        "context_length": resident.llm.n_ctx,
    }


def shown_model(found: Found, *, verbose: bool) -> JSON:
    """The answer of ``/api/show``."""
    facts, recipe = facts_of(found), found.recipe
    info = {
        key: value if verbose or not isinstance(value, list) or len(value) <= LONG_ARRAY else None
        for key, value in facts.info.items()
    }
    shown: JSON = {
        "license": "\n".join(recipe.licences),
        "modelfile": _modelfile(found),
        "parameters": parameter_lines(recipe),
        "template": recipe.template or facts.template,
        "system": recipe.system or "",
        "details": details_of(found),
        "messages": recipe_to_json(recipe).get("messages", []),
        "model_info": info,
        "capabilities": ["completion"],
        "modified_at": moment_text(found.modified),
    }
    if recipe.requires is not None:
        shown["requires"] = recipe.requires
    if verbose:
        shown["tensors"] = list(facts.tensors)
    return shown


def parameter_lines(recipe: Recipe) -> str:
    """Parameters as text, one ``name value`` a line."""
    lines = []
    for name, value in recipe.parameters.items():
        for each in value if isinstance(value, tuple) else (value,):
            shown = f'"{each}"' if isinstance(each, str) else str(each).lower()
            lines.append(f"{name:<30} {shown}")
    return "\n".join(lines)


def _modelfile(found: Found) -> str:
    """A Modelfile that names the model: the folder of this machine that it lies in is nobody's business."""
    from nanollama.store.modelfile import Modelfile, modelfile_text

    try:
        return modelfile_text(Modelfile(found.id, found.recipe))
    except NanollamaError:  # a text in it has no form in the language
        return ""
