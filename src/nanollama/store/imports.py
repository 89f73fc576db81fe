"""Models where they already lie, taken up without a copy: a path in, the record that registers it out."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from nanollama.errors import FormatError, ModelNotFoundError
from nanollama.formats.folders import not_a_checkpoint
from nanollama.store.files import read_small, regular_file, sha256_of, unwound
from nanollama.store.names import DEFAULT_TAG, Digest, ModelName
from nanollama.store.recipe import Recipe
from nanollama.store.registry import Record, RecordFile
from nanollama.store.transfer import Progress

_CHECKPOINT_ENDINGS = (".safetensors", ".json", ".model", ".txt", ".jinja")
"""What a checkpoint's files end with; a folder's others (pictures, other formats) are no part of it."""

_INDEX = "model.safetensors.index.json"
_MAX_INDEX = 64 << 20
SPLIT_PART = re.compile(r"-(?P<number>\d{5})-of-(?P<count>\d{5})$", re.ASCII)
"""The end of the stem of one file of a model in several."""


_NOT_IN_A_NAME = re.compile(r"[^a-z0-9._-]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Imported:
    """The record of a model that was found; ``notes`` say what of it is left out."""

    record: Record
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Skipped:
    """A model that was found and not registered, with the reason."""

    name: str
    reason: str


def is_checkpoint(folder: Path) -> bool:
    """Whether ``folder`` holds a checkpoint in the Hugging Face layout."""
    return regular_file(folder / "config.json", follow=True) is not None and any(folder.glob("*.safetensors"))


def describe(path: Path, name: ModelName, progress: Progress | None = None) -> Record:
    """The record of a ``.gguf`` file or checkpoint folder anywhere, which stays where it is.

    With ``progress`` the files are read through for their digests. Raises ``ModelNotFoundError``, and
    ``FormatError`` or ``UnsupportedError`` for what is no model.
    """
    path = unwound(Path(path))
    if is_checkpoint(path):
        files = _files(_checkpoint_files(path), progress)
        return _record(name, path, files, is_folder=True)
    if path.is_dir():
        raise not_a_checkpoint(path)
    return _record(name, path, _files(_gguf_files(path), progress))


def record_of_file(name: ModelName, path: Path, digest: Digest, *, source: str, recipe: Recipe) -> Record:
    """The record of one GGUF file whose digest is known."""
    path = unwound(path)
    [found] = _gguf_files(path)
    file = RecordFile(found.name, found.stat().st_size, digest)
    return _record(name, path, (file,), source=source, recipe=recipe)


def folder_digest(files: Iterable[RecordFile]) -> Digest | None:
    """The digest of several files: of their sorted lines ``sha256  name``; ``None`` if one has none."""
    import hashlib

    lines = []
    for file in files:
        if file.digest is None:
            return None
        lines.append(f"{file.digest.hex}  {file.name}\n")
    return Digest(f"sha256:{hashlib.sha256(''.join(sorted(lines)).encode()).hexdigest()}")


def name_for(path: Path) -> ModelName:
    """A name like that of the file or folder: its words, and the quantization that ends them as the tag."""
    from nanollama.store.choose import quant_of

    stem = SPLIT_PART.sub(
        "", path.name[: -len(".gguf")] if path.name.lower().endswith(".gguf") else path.name
    )
    quant = quant_of(stem)
    if quant and stem.lower().endswith(quant.lower()):
        stem = stem[: -len(quant)]
    model = re.sub(r"\.\.+", ".", _NOT_IN_A_NAME.sub("-", stem.lower())).strip("._-")[:80].strip("._-")
    return ModelName.parse(f"{model or 'model'}:{quant or DEFAULT_TAG}")


def _gguf_files(path: Path) -> tuple[Path, ...]:
    """The file, or all parts of a split model, with a header that was checked."""
    from nanollama.formats.gguf import GGUFFile

    if regular_file(path, follow=True) is None:
        raise ModelNotFoundError(f"there is no file {path}: check the path")
    with GGUFFile(path) as file:
        return file.files


def _checkpoint_files(folder: Path) -> list[Path]:
    """All files of the checkpoint, after a look whether the weights that its index lists are there."""
    import json

    try:
        index = json.loads(read_small(folder / _INDEX, _MAX_INDEX, follow=True) or b"{}")
        named = {str(each) for each in index.get("weight_map", {}).values()}
    except (OSError, ValueError, RecursionError, AttributeError):
        raise FormatError(f"{_INDEX} in {folder} is not an index of weights; fetch the model again") from None
    found = [each for each in sorted(folder.iterdir()) if each.name.endswith(_CHECKPOINT_ENDINGS)]
    if missing := sorted(named - {each.name for each in found if regular_file(each, follow=True)}):
        raise FormatError(
            f"{missing[0]} is missing in {folder}, which its index lists; fetch the model again"
        )
    return found


def _files(paths: Iterable[Path], progress: Progress | None) -> tuple[RecordFile, ...]:
    files = []
    for path in paths:
        if status := regular_file(path, follow=True):
            digest = sha256_of(path, progress, f"reading {path.name}") if progress else None
            files.append(RecordFile(path.name, status.st_size, digest))
    return tuple(files)


def _record(
    name: ModelName,
    path: Path,
    files: tuple[RecordFile, ...],
    *,
    is_folder: bool = False,
    source: str | None = None,
    recipe: Recipe | None = None,
) -> Record:
    return Record(
        name=name,
        format="safetensors" if is_folder else "gguf",
        path=path,
        size=sum(file.size for file in files),
        digest=folder_digest(files) if is_folder or len(files) > 1 else files[0].digest,
        modified=round(path.stat().st_mtime, 6),
        owned=False,
        source=source or f"imported from {path}",
        recipe=recipe or Recipe(),
        files=files,
    )
