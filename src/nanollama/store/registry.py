"""The register of models: ``models.json`` in, a record a name out; a change is written whole or not at all.

The file lies in the store's folder and can be read by people (docs/reference/registry.md has the fields):

    {"version": 1,
     "models": {
       "smollm2:135m": {
         "format": "gguf",
         "path": "library/smollm2/135m/SmolLM2-135M-Instruct.Q4_1.gguf",
         "size": 98362432,
         "digest": "sha256:b179...",
         "modified": "2026-11-22T14:03:39.250000+00:00",
         "owned": true,
         "source": "catalogue",
         "files": [{"name": "SmolLM2-135M-Instruct.Q4_1.gguf", "size": 98362432, "digest": "sha256:..."}]}}}

Processes that change it take turns (``models.json.lock``); readers need no lock, because a change replaces
the file at once. ``models.json.bak`` is the same file again, read where the first is damaged. An entry that
is not a record stays in the file as it is, and is reported by ``verify``.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, cast

from nanollama.errors import FormatError, NanollamaError, UnsupportedError, UsageError
from nanollama.store.files import locked, read_small, regular_file, write_whole
from nanollama.store.names import Digest, ModelName
from nanollama.store.recipe import Recipe, recipe_from_json, recipe_to_json

UPLOADED = "uploaded"
"""The source of a model that was made from an upload."""

FILE = "models.json"
VERSION = 1
_MAX_BYTES = 64 << 20
_OPTIONAL = ("digest", "source", "parent", "recipe")
_REQUIRED = ("format", "path", "size", "modified", "owned", "files")


@dataclass(frozen=True, slots=True)
class RecordFile:
    """One file of a model: its name, relative to the model's folder, its bytes, and its digest if known."""

    name: str
    size: int
    digest: Digest | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """What a name stands for.

    ``path`` is a ``.gguf`` file or a checkpoint folder; ``size`` is in bytes, of all ``files``; ``digest`` is
    that of the gguf, or of a folder's sorted lines ``sha256  name``; ``modified`` is in seconds since 1970.
    Only ``owned`` files were fetched or made by nanollama, and only those does ``rm`` delete. ``source`` is
    where they came from; ``parent`` is the name that this one was created from.
    """

    name: ModelName
    format: Literal["gguf", "safetensors"]
    path: Path
    size: int
    digest: Digest | None
    modified: float
    owned: bool
    source: str | None = None
    recipe: Recipe = field(default_factory=Recipe)
    parent: str | None = None
    files: tuple[RecordFile, ...] = ()

    @property
    def folder(self) -> Path:
        """Where ``files`` lie."""
        return self.path if self.format == "safetensors" else self.path.parent

    @property
    def id(self) -> str:
        """64 hex digits: those of the files, or with a recipe of somebody's own ``variant_id``."""
        is_as_fetched = self.parent is None and self.source != UPLOADED
        return self.weights_id if is_as_fetched else variant_id(self.weights_id, self.recipe)

    @property
    def weights_id(self) -> str:
        """64 hex digits: the digest of the files, or where it isn't known, of what is known of them."""
        return self.digest.hex if self.digest else id_of(f"{self.path} {self.size} {self.modified}")

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(self.folder / file.name for file in self.files)


@dataclass(slots=True)
class State:
    """The register in memory: the records, and the entries that are none, each with the reason.

    ``notice`` says what had to be done to read it. ``afterwards`` is done when a change is on disk, before
    anybody else's can begin.
    """

    records: dict[ModelName, Record] = field(default_factory=dict)
    unreadable: dict[str, tuple[Any, str]] = field(default_factory=dict)
    notice: str | None = None
    afterwards: list[Callable[[], object]] = field(default_factory=list)


class Registry:
    """The file ``models.json`` of one store; ``root`` is the store's folder, made by the first change."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.path = root / FILE
        self._backup = root / f"{FILE}.bak"

    def read(self) -> State:
        """All entries.

        Raises ``UnsupportedError`` for a register of a newer nanollama, and ``NanollamaError`` for one that
        can't be read or is no regular file; neither is ever written over.
        """
        state, damage = self._read_one(self.path)
        if state is not None:
            return state
        copy, copy_damage = self._read_one(self._backup)
        if copy is not None:
            copy.notice = f"{FILE} {damage or 'is missing'}; its copy {self._backup.name} is used"
            return copy
        if damage is None and copy_damage is None:
            return State()
        return State(
            notice=f"{FILE} {damage or 'is missing'} and so is its copy: only models that lie in the store's "
            f"own folders are known; pull or import the others again"
        )

    @contextmanager
    def change(self) -> Iterator[State]:
        """The register to change in place, written when the block ends without an error.

        Nobody else changes it meanwhile; the block must not ask for another change.
        """
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(self.root / f"{FILE}.lock"))
            except OSError as error:
                raise _unwritable(self.path, error) from error
            state = self.read()
            before = None if state.notice else self._text(state)
            yield state
            if (after := self._text(state)) != before:
                self._write(after, is_damaged=state.notice is not None)
            for each in state.afterwards:
                each()

    def _read_one(self, path: Path) -> tuple[State | None, str | None]:
        """The state in ``path``, or ``None`` and what is wrong with it: ``None`` again if it is absent."""
        try:
            content = read_small(path, _MAX_BYTES)
            if content is None:
                return None, None
            value = json.loads(content)
        except (ValueError, RecursionError):  # also what is no UTF-8
            return None, "is damaged"
        except OSError as error:
            raise NanollamaError(
                f"{path} can't be read ({error.strerror or error}): expected a readable file and no link; "
                "check its permissions, or move it away"
            ) from error
        if not isinstance(value, dict) or type(version := value.get("version")) is not int:
            return None, "is damaged"
        if version > VERSION:
            raise UnsupportedError(
                f"{path} has version {version}, written by a newer nanollama, and this one reads {VERSION}: "
                "update nanollama"
            )
        models = value.get("models")
        if version < 1 or not isinstance(models, dict):
            return None, "is damaged"
        state = State()
        for text, entry in models.items():
            try:
                name = ModelName.parse(text)
                if str(name) != text:
                    raise FormatError(f"its name is written {str(name)!r}")
                state.records[name] = record_from_json(name, entry, self.root)
            except (FormatError, UsageError) as error:
                state.unreadable[text] = (entry, str(error))
        return state, None

    def _text(self, state: State) -> bytes:
        models = {str(name): record_to_json(record, self.root) for name, record in state.records.items()}
        models |= {text: entry for text, (entry, _) in state.unreadable.items() if text not in models}
        value = {"version": VERSION, "models": dict(sorted(models.items()))}
        return (json.dumps(value, indent=1) + "\n").encode()

    def _write(self, content: bytes, *, is_damaged: bool) -> None:
        try:
            if is_damaged and self.path.exists():
                os.replace(self.path, self._place_for_damaged())
            write_whole(self.path, content)
            write_whole(self._backup, content)
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def _place_for_damaged(self) -> Path:
        """Where a damaged register is kept: nothing that was kept before is written over."""
        places = (self.root / f"{FILE}.damaged{end}" for end in ("", *(f"-{n}" for n in range(2, 10_000))))
        return next(place for place in places if not os.path.lexists(place))


def is_complete(record: Record) -> bool:
    """Whether all files of ``record`` are there in their sizes. Our own are no links."""
    for path, file in zip(record.paths, record.files, strict=True):
        status = regular_file(path, follow=not record.owned)
        if status is None or status.st_size != file.size:
            return False
    return True


def record_to_json(record: Record, root: Path) -> dict[str, Any]:
    """``record`` as it stands in the file. A path below ``root`` is written relative to it."""
    inside = record.path.is_relative_to(root)
    values: dict[str, Any] = {
        "format": record.format,
        "path": str(record.path.relative_to(root) if inside else record.path),
        "size": record.size,
        "digest": record.digest.text if record.digest else None,
        "modified": datetime.fromtimestamp(record.modified, UTC).isoformat(),
        "owned": record.owned,
        "source": record.source,
        "parent": record.parent,
        "files": [
            {"name": file.name, "size": file.size, "digest": file.digest.text if file.digest else None}
            for file in record.files
        ],
    }
    if recipe := recipe_to_json(record.recipe):
        values["recipe"] = recipe
    return values


def record_from_json(name: ModelName, value: object, root: Path) -> Record:
    """The record that :func:`record_to_json` wrote. Raises ``FormatError`` for anything else.

    Files that are owned lie below ``root``, and no name of a file leads out of the model's folder: whatever
    stands in the file, nothing else is ever deleted.
    """
    if not isinstance(value, dict):
        raise FormatError("it is not an object")
    if wrong := sorted(set(value) - {*_OPTIONAL, *_REQUIRED}) or sorted(set(_REQUIRED) - set(value)):
        raise FormatError(f"its field {wrong[0]!r:.80} is {'unknown' if wrong[0] in value else 'missing'}")
    if value["format"] not in ("gguf", "safetensors"):
        raise FormatError("its format is neither gguf nor safetensors")
    text = _text(value, "path")
    path = root / text
    if not _can_be_a_path(text) or ".." in Path(text).parts or type(value["owned"]) is not bool:
        raise FormatError("its path or its field 'owned' is not valid")
    if value["owned"] and not (path.is_relative_to(root) and path != root):
        raise FormatError("it is said to be owned, but its path is outside the store's folder")
    files = value["files"]
    if not isinstance(files, list) or not files:
        raise FormatError("its files are not a list of at least one file")
    return Record(
        name=name,
        format=cast(Literal["gguf", "safetensors"], value["format"]),
        path=path,
        size=_size(value),
        digest=_digest(value),
        modified=_time(value),
        owned=value["owned"],
        source=_text(value, "source") if value.get("source") is not None else None,
        recipe=recipe_from_json(value.get("recipe") or {}),
        parent=_text(value, "parent") if value.get("parent") is not None else None,
        files=tuple(map(_file, files)),
    )


def variant_id(weights: str, recipe: Recipe) -> str:
    """64 hex digits for ``recipe`` over the weights with the id ``weights``."""
    return id_of(json.dumps([weights, recipe_to_json(recipe)], sort_keys=True))


def id_of(text: str) -> str:
    """The 64 hex digits of the SHA-256 of ``text``."""
    import hashlib

    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _file(value: object) -> RecordFile:
    if not isinstance(value, dict) or not set(value) <= {"name", "size", "digest"}:
        raise FormatError("one of its files is not an object of name, size and digest")
    name = _text(value, "name")
    parts = name.split("/")
    if not _can_be_a_path(name) or "\\" in name or any(part in ("", ".", "..") for part in parts):
        raise FormatError("the name of one of its files is not a path inside its folder")
    return RecordFile(name, _size(value), _digest(value))


def _can_be_a_path(text: str) -> bool:
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def _text(value: Mapping[str, object], key: str) -> str:
    text = value.get(key)
    if not isinstance(text, str) or not text:
        raise FormatError(f"its field {key!r} is not a text")
    return text


def _size(value: Mapping[str, object]) -> int:
    size = value.get("size")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise FormatError("its size is not a number of bytes")
    return size


def _digest(value: Mapping[str, object]) -> Digest | None:
    return Digest(_text(value, "digest")) if value.get("digest") is not None else None


def _time(value: Mapping[str, object]) -> float:
    try:
        return datetime.fromisoformat(_text(value, "modified")).timestamp()
    except (ValueError, OverflowError, OSError):
        raise FormatError("its field 'modified' is not a time") from None


def _unwritable(path: Path, error: OSError) -> NanollamaError:
    return NanollamaError(
        f"{path} could not be written ({error.strerror or error}): check the disk and its permissions"
    )
