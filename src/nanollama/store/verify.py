"""Whether what lies on disk is still what was registered: a record in, the problems with its files out."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from nanollama.errors import NanollamaError, UnsupportedError
from nanollama.store.files import regular_file, sha256_of
from nanollama.store.names import Digest, ModelName
from nanollama.store.registry import Record, RecordFile, State
from nanollama.store.transfer import Progress

if TYPE_CHECKING:
    from nanollama.store.store import Store


Known = dict[tuple[int, int, int, int], Digest]
"""Digests of files that were read already, by device, inode, size and time of change."""


@dataclass(frozen=True, slots=True)
class Verification:
    """What was found out about one name. ``problems`` are clauses; ``unchecked`` files have no known digest.

    ``repaired`` says that there were problems and that fetching again has solved them.
    """

    name: str
    files: int = 0
    unchecked: int = 0
    problems: tuple[str, ...] = ()
    repaired: bool = False


def verify(
    store: "Store", name: ModelName, *, repair: bool, progress: Progress, known: Known | None = None
) -> Verification:
    """Reads all files of ``name``; with ``repair``, what is wrong is fetched again where that can be done.

    With ``known`` a file that several names share is read once, if it doesn't change meanwhile.

    Raises ``ModelNotFoundError``, and what ``pull`` raises.
    """
    state = store.state()
    record = store.named(state, name)
    if record is None:
        if (entry := state.unreadable.get(str(name))) is None:
            raise store.unknown(str(name))
        return Verification(str(name), problems=(f"its entry in the register can't be used: {entry[1]}",))
    known = {} if known is None else known
    found = verified(record, progress, known)
    if not found.problems or not repair:
        return found
    if not record.owned:
        advice = "nanollama did not fetch it, so that it can't fetch it again: import it again, or remove it"
        return replace(found, problems=(*found.problems, advice))
    store.pull(_origin(store, state, record), progress)
    again = store.state().records.get(record.name, record)
    return replace(verified(again, progress, known), repaired=True)


def _origin(store: "Store", state: State, record: Record) -> str:
    """What to pull so that the files of ``record`` come again: its own name, or one that shares them."""
    sharing = [each for each in state.records.values() if set(each.paths) & set(record.paths)]
    for each in (record, *sharing):
        source = each.source or ""
        if "://" in source:
            return source
        is_pulled = source == "catalogue" or source.startswith("hf.co/")
        if is_pulled and store.is_fetchable(str(each.name)):
            return str(each.name)
    raise UnsupportedError(f"{record.name} can't be fetched again, since it was made on this machine")


def verified(record: Record, progress: Progress, known: Known) -> Verification:
    """Reads all files of ``record`` and compares their digests; a GGUF without one has its header read."""
    problems = []
    for path, file in zip(record.paths, record.files, strict=True):
        if problem := _problem(path, file, record, progress, known):
            problems.append(problem)
    unchecked = sum(file.digest is None for file in record.files)
    return Verification(str(record.name), len(record.files), unchecked, tuple(problems))


def _problem(path: Path, file: RecordFile, record: Record, progress: Progress, known: Known) -> str | None:
    status = regular_file(path, follow=not record.owned)
    if status is None:
        return f"{path} is missing"
    if status.st_size != file.size:
        return f"{path} has {status.st_size} bytes instead of {file.size}"
    try:
        if file.digest is not None:
            key = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
            if key not in known:
                known[key] = sha256_of(path, progress, f"verifying {record.name}")
            is_same = known[key] == file.digest
            return None if is_same else f"{path} does not have the sha256 it was registered with"
        if record.format == "gguf":
            _read_header(path)
    except OSError as error:
        return f"{path} can't be read ({error.strerror or error})"
    except NanollamaError as error:
        return str(error)
    return None


def _read_header(path: Path) -> None:
    from nanollama.formats.gguf import GGUFFile

    GGUFFile(path).close()
