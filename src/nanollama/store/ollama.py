"""The models of an Ollama installation: its folder in, a record for each of them out; nothing is copied.

Ollama keeps a manifest for each name (``manifests/<host>/<namespace>/<model>/<tag>``, JSON in the form of
Docker's, version 2) and its layers under their digests (``blobs/sha256-<hex>``). What a manifest says is
checked like anything from outside: a layer is found by a parsed digest only.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanollama.errors import FormatError, NanollamaError, UnsupportedError, UsageError
from nanollama.store.files import expanded, read_small, regular_file
from nanollama.store.go_templates import jinja_for
from nanollama.store.imports import Imported, Skipped, record_of_file
from nanollama.store.names import OLLAMA_HOST, Digest, ModelName
from nanollama.store.parameters import DEPRECATED, check_parameter
from nanollama.store.recipe import ParameterValue, Recipe
from nanollama.types import Message

_LAYER = "application/vnd.ollama.image."
_MAX_MANIFEST = 4 << 20
_MAX_TEXT = 4 << 20
_MAX_LAYERS = 4096
_LEFT_OUT = {
    "projector": "it has a part for images, which is left out; text works",
    "adapter": "it has an adapter, which is not applied: the plain model would answer differently",
    "tensor": "it is stored tensor by tensor and not as a GGUF file",
}


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer of a manifest: its kind, such as ``model`` or ``template``, and its content's digest."""

    kind: str
    digest: Digest
    size: int


def default_folder() -> Path:
    """``$OLLAMA_MODELS``, else where Ollama keeps its models: for this user, or for the service."""
    if named := os.environ.get("OLLAMA_MODELS"):
        return expanded(named)
    own, services = Path.home() / ".ollama/models", Path("/usr/share/ollama/.ollama/models")
    return services if services.is_dir() and not own.is_dir() else own


def ollama_models(folder: Path) -> Iterator[Imported | Skipped]:
    """A record for each model in ``folder``, or why there is none; sorted by name.

    Raises ``UsageError`` if ``folder`` is not an Ollama folder.
    """
    manifests = folder / "manifests"
    if not manifests.is_dir():
        raise UsageError(
            f"there are no Ollama models in {folder} (it has no folder 'manifests'): name its folder with "
            "--from DIR or OLLAMA_MODELS"
        )
    for path in sorted(manifests.glob("*/*/*/*")):
        host, namespace, model, tag = path.relative_to(manifests).parts
        text = f"{host}/{namespace}/{model}:{tag}"
        try:
            name = ModelName.parse(text)
            yield record_of_manifest(name, path, folder / "blobs")
        except NanollamaError as error:
            yield Skipped(text.removeprefix(f"{OLLAMA_HOST}/"), str(error))


def record_of_manifest(name: ModelName, path: Path, blobs: Path) -> Imported:
    """The model that the manifest ``path`` describes. Raises ``FormatError`` and ``UnsupportedError``."""
    layers = read_manifest(path)
    weights = [layer for layer in layers if layer.kind == "model"]
    for kind in ("tensor", "adapter"):
        if any(layer.kind == kind for layer in layers):
            raise UnsupportedError(_LEFT_OUT[kind])
    if len(weights) != 1:
        raise UnsupportedError(f"its manifest has {len(weights)} layers of weights, and 1 was expected")
    file = _blob(blobs, weights[0])
    recipe, notes = _recipe(layers, blobs)
    if any(layer.kind == "projector" for layer in layers):
        notes.append(_LEFT_OUT["projector"])
    source = f"imported from Ollama ({path})"
    record = record_of_file(name, file, weights[0].digest, source=source, recipe=recipe)
    return Imported(record, tuple(notes))


def read_manifest(path: Path) -> list[Layer]:
    """The layers that a manifest lists. Raises ``FormatError`` for anything but a manifest."""
    try:
        value = json.loads(read_small(path, _MAX_MANIFEST) or b"")
    except (OSError, ValueError, RecursionError):
        raise FormatError("its manifest can't be read as JSON") from None
    layers = value.get("layers") if isinstance(value, dict) else None
    if not isinstance(layers, list) or not 0 < len(layers) <= _MAX_LAYERS:
        raise FormatError(f"its manifest does not list 1 to {_MAX_LAYERS} layers")
    return [_layer(layer) for layer in layers]


def _layer(value: object) -> Layer:
    fields = value if isinstance(value, dict) else {}
    kind, digest, size = fields.get("mediaType"), fields.get("digest"), fields.get("size")
    if not isinstance(kind, str) or not isinstance(digest, str) or type(size) is not int or size < 0:
        raise FormatError("a layer of its manifest is not an object of mediaType, digest and size")
    return Layer(kind.removeprefix(_LAYER), Digest(digest), size)


def _blob(blobs: Path, layer: Layer) -> Path:
    path = blobs / f"sha256-{layer.digest.hex}"
    status = regular_file(path, follow=True)
    if status is None or status.st_size != layer.size:
        raise FormatError(
            f"its file {path.name} is missing or not of {layer.size} bytes; pull it with Ollama"
        )
    return path


def _recipe(layers: list[Layer], blobs: Path) -> tuple[Recipe, list[str]]:
    """What the small layers say, and what of it is left out."""
    texts: dict[str, list[str]] = {}
    for layer in layers:
        if layer.kind in ("template", "prompt", "system", "params", "messages", "license"):
            texts.setdefault(layer.kind, []).append(_text(_blob(blobs, layer)))
    notes: list[str] = []
    template = None
    if texts.get("template"):
        try:
            template = jinja_for(texts["template"][-1])
        except NanollamaError as error:
            notes.append(f"the template in the weights is used, since Ollama's has no equivalent: {error}")
    recipe = Recipe(
        template=template,
        system=texts["system"][-1] if texts.get("system") else None,
        parameters=_parameters(texts.get("params", []), notes),
        messages=tuple(_messages(texts.get("messages", []))),
        licences=tuple(texts.get("license", [])),
    )
    return recipe, notes


def _text(path: Path) -> str:
    try:
        return (read_small(path, _MAX_TEXT, follow=True) or b"").decode("utf-8")
    except (OSError, ValueError):
        raise FormatError(f"its file {path.name} is not a readable text") from None


def _parameters(texts: list[str], notes: list[str]) -> dict[str, ParameterValue]:
    values: dict[str, ParameterValue] = {}
    for text in texts:
        fields = _json(text)
        if not isinstance(fields, dict):
            raise FormatError("its parameters are not a JSON object")
        for name, value in fields.items():
            if name in DEPRECATED:
                continue
            try:
                values[name] = check_parameter(name, value)
            except UsageError as error:
                notes.append(f"its parameter {error}; it is left out")
    return values


def _messages(texts: list[str]) -> Iterator[Message]:
    for text in texts:
        values = _json(text)
        for value in values if isinstance(values, list) else [None]:
            fields = value if isinstance(value, dict) else {}
            role, content = fields.get("role"), fields.get("content")
            if not isinstance(role, str) or not isinstance(content, str):
                raise FormatError("its messages are not a JSON array of objects with role and content")
            yield Message(role, content)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise FormatError("its parameters or messages are not JSON") from None
