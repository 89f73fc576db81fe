"""Models as Ollama's clients read them: what was found on disk in, objects of ``tags``, ``ps``, ``show`` out.

The details come from the headers of files, which are read once for each file and state of it.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

from nanollama.errors import NanollamaError
from nanollama.formats.details import Details, TensorLine, read_details
from nanollama.formats.gguf import GGUFFile
from nanollama.server.ollama.durations import expiry_text, moment_text
from nanollama.server.pool import Resident
from nanollama.server.problems import JSON
from nanollama.server.source import Found
from nanollama.store.recipe import Recipe, recipe_to_json

LONG_ARRAY = 5
"""A list of metadata that is longer is shown empty, as Ollama does, but to those who ask for everything."""


def facts_of(found: Found) -> Details | None:
    """What the files of a model say of themselves, ``None`` if they can't be read."""
    try:
        return _facts(found.path, found.path.stat().st_mtime_ns)
    except OSError:
        return None


@lru_cache(maxsize=256)
def _facts(path: Path, _stamp: int) -> Details | None:
    try:
        return read_details(path)
    except (NanollamaError, OSError, ValueError):
        return None


def _model_info(path: Path, facts: Details, *, verbose: bool) -> JSON:
    """The metadata of a GGUF file, or what a ``config.json`` says, under the names of GGUF."""
    if facts.format == "safetensors":
        family = facts.architecture or ""
        return {
            "general.architecture": family,
            "general.parameter_count": facts.parameters,
            f"{family}.context_length": facts.context_length,
            f"{family}.embedding_length": facts.embedding_length,
        }
    with GGUFFile(path) as file:
        hidden = {key for key in file.metadata if not verbose and (file.array_length(key) or 0) > LONG_ARRAY}
        info = {key: [] if key in hidden else _plain(file.metadata[key]) for key in file.metadata}
    return {**info, "general.parameter_count": facts.parameters}


def _tensor(each: TensorLine) -> JSON:
    return {"name": each.name, "type": each.type, "shape": list(each.shape)}


def _plain(value: Any) -> Any:
    """A value that JSON can say: text that is not UTF-8 loses what it can't."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not -1e308 < value < 1e308:
        return None
    return value


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
    family = (facts and facts.architecture) or ""
    return {
        "parent_model": parent or "",
        "format": facts.format if facts is not None else _format(found),
        "family": family,
        "families": [family] if family else [],
        "parameter_size": parameter_size(facts.parameters) if facts and facts.parameters else "",
        "quantization_level": (facts and facts.quantization) or "",
        "context_length": facts and facts.context_length,
        "embedding_length": facts and facts.embedding_length,
    }


def _format(found: Found) -> str:
    return "safetensors" if found.path.is_dir() else "gguf"


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
    shown: JSON = {
        "license": "\n".join(recipe.licences),
        "modelfile": _modelfile(found),
        "parameters": parameter_lines(recipe),
        "template": recipe.template or (facts and facts.template) or "",
        "system": recipe.system or "",
        "details": details_of(found),
        "messages": recipe_to_json(recipe).get("messages", []),
        "model_info": {} if facts is None else _model_info(found.path, facts, verbose=verbose),
        "capabilities": ["completion"],
        "modified_at": moment_text(found.modified),
    }
    if recipe.requires is not None:
        shown["requires"] = recipe.requires
    if verbose and facts is not None:
        shown["tensors"] = [_tensor(each) for each in facts.tensors]
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
