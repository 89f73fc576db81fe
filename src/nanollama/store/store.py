"""The only code that touches the files of the store: a name in, the path of a complete model out.

What a name stands for is in the register (``registry.py``); a model is shown and loaded only if all its files
are there in their recorded sizes. A file that nanollama neither fetched nor made is deleted only on demand,
and one that another name still uses never.
"""

import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from nanollama.errors import DownloadError, ModelNotFoundError, NanollamaError, UsageError
from nanollama.store.adopt import adoptable, folder_of
from nanollama.store.catalogue import CATALOGUE, Entry, find_entry
from nanollama.store.files import expanded, locked, unwound
from nanollama.store.missing import embeds_only, incomplete, not_a_model_file, unknown
from nanollama.store.names import ModelName
from nanollama.store.recipe import Recipe
from nanollama.store.registry import Record, Registry, State, is_complete
from nanollama.store.removal import LOCK, Removed, discard, remove_unfinished
from nanollama.store.transfer import Progress, Silent

if TYPE_CHECKING:
    from nanollama.store.fetch import Fetcher
    from nanollama.store.plans import Hosts
    from nanollama.store.usage import Usage
    from nanollama.store.verify import Known, Verification

_FETCHING = "another process is fetching this model; waiting for it"
_HUB_PREFIXES = ("hf.co/", "huggingface.co/", "www.huggingface.co/")


@dataclass(frozen=True, slots=True)
class Located:
    """What was asked for: a ``.gguf`` file or a checkpoint folder, and what its recipe adds.

    ``name`` and ``record`` are ``None`` for a path.
    """

    path: Path
    recipe: Recipe
    name: ModelName | None = None
    record: Record | None = None


class Store:
    """The models of this machine. Their register and what was pulled lie below ``root``."""

    def __init__(
        self,
        root: Path | None = None,
        fetcher: "Fetcher | None" = None,
        catalogue: tuple[Entry, ...] = CATALOGUE,
        backoff_s: float = 0.5,
        notice: Callable[[str], None] = warnings.warn,
    ) -> None:
        self.root = root or default_root()
        self._registry = Registry(self.root)
        self._fetcher = fetcher
        self._catalogue = catalogue
        self._backoff_s = backoff_s
        self._notice = notice
        self._told: set[str] = set()

    def locate(self, text: str, *, fetch: bool = True, progress: Progress | None = None) -> Located:
        """What ``text`` means; see the function of the same name."""
        if _is_path(text):
            return Located(expanded(text), Recipe())
        if name := self._remote_name(text):
            fetchable = True
        else:
            try:
                name = ModelName.parse(text)
            except UsageError as error:
                is_path = _looks_like_path(text) or (text != "" and os.path.isdir(expanded(text)))
                raise (not_a_model_file(text) if is_path else error) from None
            fetchable = find_entry(name, self._catalogue) is not None
        if found := self.find(name):
            return Located(found.path, found.recipe, found.name, found)
        if not fetchable:
            raise self._not_here(text, name)
        self._check_pullable(text)
        if not fetch:
            raise ModelNotFoundError(f"{text} is not on this machine: fetch it with 'nanollama pull {text}'")
        record = self.pull(text, progress)
        return Located(record.path, record.recipe, record.name, record)

    def find(self, name: ModelName) -> Record | None:
        """The record of ``name`` or of what it is an alias for, or ``None`` if its files are not all there.

        It compares sizes; ``verify`` and ``pull`` compare digests.
        """
        record = self.named(self.state(), name)
        return record if record is not None and is_complete(record) else None

    def list(self) -> list[Record]:
        """All models whose files are there, newest first."""
        records = [record for record in self.state().records.values() if is_complete(record)]
        return sorted(records, key=lambda record: (-record.modified, str(record.name)))

    def broken(self) -> tuple[str, ...]:
        """The names that can't be loaded: a file is missing or has another size, or the entry is none."""
        state = self.state()
        incomplete = [str(name) for name, record in state.records.items() if not is_complete(record)]
        return tuple(sorted([*incomplete, *state.unreadable]))

    def state(self) -> State:
        """Everything the register says and the folders hold, also what can't be loaded."""
        state = self._registry.read()
        self._tell(state)
        self._adopt(state)
        return state

    def named(self, state: State, name: ModelName) -> Record | None:
        """The record in ``state`` of ``name`` or of what it is an alias for, whole or not."""
        if name in state.records:
            return state.records[name]
        entry = find_entry(name, self._catalogue)
        return state.records.get(entry.name) if entry else None

    def is_fetchable(self, text: str) -> bool:
        """Whether ``text`` is an address, a repository of the hub or a name of the catalogue."""
        if self._remote_name(text) is not None:
            return True
        return find_entry(ModelName.parse(text), self._catalogue) is not None

    def folder(self, name: ModelName) -> Path:
        """Where files that are fetched or made for ``name`` belong."""
        return folder_of(self.root, name)

    def add(self, record: Record) -> Record:
        """Registers a model, in place of one that had its name. Its files must be there."""
        if not is_complete(record):
            raise UsageError(f"{record.name} can't be registered: a file of {record.path} is missing")
        if record.owned and not record.path.is_relative_to(self.root):
            raise UsageError(f"{record.name} can't own {record.path}, which is outside the store's folder")
        with self._changing() as state:
            self._put(state, record)
        return record

    def create(self, name: ModelName, located: Located, recipe: Recipe, parent: str) -> Record:
        """Registers ``name`` as the weights of ``located`` with ``recipe``; no file is copied.

        It takes the place of a model that had the name.
        """
        from nanollama.store.imports import describe

        base = located.record or describe(located.path, name)
        with self._changing() as state:
            if located.record is not None:
                base = self._present(state, located.record.name)
            else:  # the path may be that of a model, whose files stay ours and keep their digest
                same = (each for each in state.records.values() if each.paths == base.paths)
                base = next(filter(is_complete, same), base)
            record = replace(base, name=name, recipe=recipe, parent=parent, modified=_now())
            self._put(state, record)
        return record

    def copy(self, source: ModelName, target: ModelName, *, replacing: bool = False) -> Record:
        """Gives the model ``source`` a second name; its files are shared.

        Raises ``UsageError`` if there is a model ``target`` already and it is not to be replaced.
        """
        with self._changing() as state:
            base = self._present(state, source)
            if self.named(state, target) is base:
                raise UsageError(f"{source} and {target} are the same model: give the copy a name of its own")
            if target in state.records and not replacing:
                raise UsageError(f"there is a model {target} already: remove it first, or copy with --force")
            record = replace(base, name=target, modified=_now())
            self._put(state, record)
        return record

    def remove(self, name: ModelName, *, delete_file: bool = False) -> Removed:
        """Forgets ``name`` and deletes its files, but for those that other names use or that are not ours.

        ``delete_file`` deletes also files that nanollama didn't fetch or make. Raises ``ModelNotFoundError``.
        """
        with self._changing() as state:
            record = self.named(state, name)
            if record is None:
                unfinished = remove_unfinished(self.folder(name), self.root)
                if state.unreadable.pop(str(name), None) is None and not unfinished:
                    raise self.unknown(str(name))
                return Removed(name, unfinished)
            others = [each for each in state.records.values() if each is not record]
            is_ours = record.owned or delete_file or not record.path.is_relative_to(self.root)
            if not is_ours and not any(record.path in each.paths for each in others):
                raise UsageError(
                    f"{record.path} lies in the store's folder, but nanollama did not fetch it: move it "
                    f"elsewhere, or delete it with 'nanollama rm --delete-file {record.name}'"
                )
            unfinished = remove_unfinished(self.folder(record.name), self.root)
            del state.records[record.name]
            removed = discard(record, others, self.root, delete_file=delete_file)
            return replace(removed, deleted=(*removed.deleted, *unfinished))

    def verify(
        self,
        name: ModelName,
        *,
        repair: bool = False,
        progress: Progress | None = None,
        known: "Known | None" = None,
    ) -> "Verification":
        """Reads all files of ``name`` and says what is wrong with them; with ``repair`` they are fetched
        again where that can be done. What ``known`` holds isn't read again. Raises ``ModelNotFoundError``.
        """
        from nanollama.store.verify import verify

        return verify(self, name, repair=repair, progress=progress or Silent(), known=known)

    def usage(self) -> "Usage":
        """What takes up the disk, model by model and in the store's folder."""
        from nanollama.store.usage import usage_of

        return usage_of(list(self.state().records.values()), self.root)

    def pull(self, target: str, progress: Progress | None = None, *, hosts: "Hosts | None" = None) -> Record:
        """The complete model of ``target``, its digests compared, fetched if it is absent or differs.

        ``target`` is a name of the catalogue, ``hf.co/user/repo[:quantization]`` or the address of a .gguf
        file; at the terminal (``hosts`` ``None``: from anywhere) also a path, which is registered where it
        lies. Raises ``ModelNotFoundError``, ``UsageError`` and ``DownloadError``; then nothing has changed.
        """
        from nanollama.store.download import DownloadSettings, download
        from nanollama.store.fetch import Fetcher
        from nanollama.store.plans import ANY, plan_for
        from nanollama.store.pulling import folder_for, is_current, pulled_record

        progress, fetcher = progress or Silent(), self._fetcher or Fetcher()
        if hosts is None and _is_path(target):
            return self.import_path(target, progress=progress)
        if hosts is None and target.startswith((".", "/", "~")):  # so no name begins
            raise not_a_model_file(target)
        self._check_pullable(target)
        plan = plan_for(target, fetcher, catalogue=self._catalogue, hosts=hosts or ANY)
        if (present := self.find(plan.name)) and is_current(present, plan):
            return present
        folder = self.folder(plan.name)
        try:
            with locked(folder / LOCK, progress=progress, why=_FETCHING):
                if (present := self.find(plan.name)) and is_current(present, plan):
                    return present
                place = folder_for(plan, self.state(), folder)
                files = download(plan, place, fetcher, progress, DownloadSettings(backoff_s=self._backoff_s))
                return self.add(pulled_record(plan, place, files))
        except OSError as error:
            raise DownloadError(
                f"{plan.name} could not be written to {folder} ({error.strerror or error}): check the "
                "disk and its permissions, or set NANOLLAMA_MODELS to another folder"
            ) from error

    def import_path(
        self, path: str, name: ModelName | None = None, progress: Progress | None = None
    ) -> Record:
        """Registers a ``.gguf`` file or a checkpoint folder where it lies; without ``name``, under its own.

        Raises ``UsageError`` if another model has the name.
        """
        from nanollama.store.imports import describe, name_for

        where = unwound(expanded(path))
        name = name or name_for(where)
        there = self.state().records.get(name)
        if there is not None and there.path != where:
            raise UsageError(f"there is a model {name} already: give this one another name with --name")
        return self.add(describe(where, name, progress or Silent()))

    def present(self, name: ModelName) -> Record:
        """The complete model called ``name``. Raises ``ModelNotFoundError``, which says what is missing."""
        return self._present(self.state(), name)

    def unknown(self, text: str, *, also: str | None = None) -> ModelNotFoundError:
        """The error for a name that means nothing here, with the names that look like it.

        ``also`` is what else works where a name of the catalogue does; then those count too.
        """
        return unknown(text, [record.name for record in self.list()], self._catalogue, also)

    def _not_here(self, text: str, name: ModelName) -> NanollamaError:
        """The error for a ``text`` that is no path and, as ``name``, no model that can be had."""
        state = self.state()
        if (record := state.records.get(name)) is not None:
            return incomplete(record)
        if str(name) in state.unreadable:
            return ModelNotFoundError(f"{name} can't be loaded: 'nanollama verify {name}' says why")
        if _looks_like_path(text):
            return not_a_model_file(text)
        if os.path.exists(expanded(text)):
            return ModelNotFoundError(
                f"there is no model {text!r}: to mean the file or folder, write ./{text}"
            )
        return self.unknown(text, also="a path")

    def _check_pullable(self, target: str) -> None:
        """Refuses what can't be fetched or would be of no use, with what is known here in mind."""
        if self._remote_name(target) is not None:
            return
        if (entry := find_entry(name := ModelName.parse(target), self._catalogue)) is not None:
            if entry.is_for_embeddings:
                raise embeds_only(entry)
            return
        if name in self.state().records:
            raise UsageError(f"{name} was made or imported on this machine: there is nothing to pull it from")
        raise self.unknown(target, also="hf.co/user/repo")

    def _remote_name(self, text: str) -> ModelName | None:
        """The name that an address or a repository of the hub has here, or ``None`` for anything else."""
        if "://" not in text and not text.lower().startswith(_HUB_PREFIXES):
            return None
        from nanollama.store.plans import parse_target

        return parse_target(text, self._catalogue).name

    @contextmanager
    def _changing(self) -> Iterator[State]:
        """The register to change; what lies in the store's folders becomes a part of it first."""
        with self._registry.change() as state:
            self._tell(state)
            self._adopt(state)
            yield state

    def _tell(self, state: State) -> None:
        """Gives what had to be done to read the register to ``notice``, once."""
        if state.notice and state.notice not in self._told:
            self._told.add(state.notice)
            self._notice(state.notice)

    def _adopt(self, state: State) -> None:
        taken = {path for record in state.records.values() for path in record.paths}
        for record in adoptable(self.root, self._catalogue, taken):
            if str(record.name) not in state.unreadable:
                state.records.setdefault(record.name, record)

    def _present(self, state: State, name: ModelName) -> Record:
        """The record of ``name``, all files there. Raises ``ModelNotFoundError``."""
        record = self.named(state, name)
        if record is None:
            raise self.unknown(str(name))
        if not is_complete(record):
            raise incomplete(record)
        return record

    def _put(self, state: State, record: Record) -> None:
        """Registers ``record``; files of the one before it that nothing uses any more are deleted."""
        before = state.records.get(record.name)
        state.records[record.name] = record
        state.unreadable.pop(str(record.name), None)
        if before is not None and before.owned:
            state.afterwards.append(lambda: discard(before, state.records.values(), self.root))


def default_root() -> Path:
    """``$NANOLLAMA_MODELS``, else ``$XDG_DATA_HOME/nanollama/models``, by default below ``~/.local/share``.

    Not ``$OLLAMA_MODELS``: that folder is Ollama's, from which ``import ollama`` takes models.
    """
    if named := os.environ.get("NANOLLAMA_MODELS", "").strip().strip("\"'"):
        return expanded(named).absolute()
    data = os.environ.get("XDG_DATA_HOME")
    return (Path(data) if data else Path.home() / ".local" / "share") / "nanollama" / "models"


def locate(text: str, *, fetch: bool = True, progress: Progress | None = None) -> Located:
    """What ``text`` means: an existing file or checkpoint folder, or a model, fetched if need be.

    Only what contains a slash or ends with ``.gguf`` is taken for a path. Raises ``ModelNotFoundError`` if
    there is nothing of that name (or it is absent and ``fetch`` is false), ``UsageError`` for what can't be a
    name, ``UnsupportedError`` for another folder or a device, and ``DownloadError`` if fetching fails.
    """
    return Store().locate(text, fetch=fetch, progress=progress)


def _looks_like_path(text: str) -> bool:
    return "/" in text or os.sep in text or text.lower().endswith(".gguf")


def _is_path(text: str) -> bool:
    """Whether ``text`` is an existing file or checkpoint folder, and looks like a path and not a name."""
    if not _looks_like_path(text):
        return False
    from nanollama.store.imports import is_checkpoint

    path = expanded(text)
    return os.path.isfile(path) or is_checkpoint(path)


def _now() -> float:
    return round(time.time(), 6)
