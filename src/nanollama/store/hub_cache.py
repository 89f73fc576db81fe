"""The models in the cache of the Hugging Face clients: its folder in, a record for each out.

The cache keeps a repository as ``models--<user>--<repo>`` with ``refs/<branch>`` (a commit),
``snapshots/<commit>/`` (links with the files' names) and ``blobs/`` (the files; large ones are called by
their SHA-256). What is registered is the snapshot that ``refs/main`` names, or else the latest. Nothing is
copied.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from nanollama.errors import NanollamaError, UsageError
from nanollama.store.choose import quant_of
from nanollama.store.files import expanded, read_small
from nanollama.store.imports import SPLIT_PART, Imported, Skipped, describe, folder_digest, is_checkpoint
from nanollama.store.names import Digest, ModelName
from nanollama.store.registry import RecordFile

_FOLDER = re.compile(r"models--(?P<user>[^/]+?)--(?P<repo>[^/]+)")
_COMMIT = re.compile(r"[0-9a-f]{40}", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_HOST = "hf.co"


def default_folder() -> Path:
    """``$HF_HUB_CACHE``, ``$HF_HOME/hub`` or ``~/.cache/huggingface/hub``, as the Hugging Face clients do."""
    if named := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return expanded(named)
    if home := os.environ.get("HF_HOME"):
        return expanded(home) / "hub"
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "huggingface" / "hub"


def cached_models(folder: Path) -> Iterator[Imported | Skipped]:
    """A record for each checkpoint and each GGUF in ``folder``, or why there is none; sorted by name.

    Raises ``UsageError`` if there is no such folder.
    """
    if not folder.is_dir():
        raise UsageError(
            f"there is no Hugging Face cache at {folder}: name its folder with --from DIR or HF_HUB_CACHE"
        )
    for repository in sorted(folder.glob("models--*")):
        match = _FOLDER.fullmatch(repository.name)
        snapshot = _snapshot(repository)
        if match is None or snapshot is None:
            yield Skipped(repository.name, "it has no snapshot of a repository named user/repo")
            continue
        yield from _models_in(snapshot, f"{_HOST}/{match['user']}/{match['repo']}")


def _snapshot(repository: Path) -> Path | None:
    """The folder of the commit that ``main`` names; if that is not there, of the one fetched last."""
    try:
        commit = (read_small(repository / "refs/main", 1000, follow=True) or b"").decode().strip()
    except (OSError, ValueError):
        commit = ""
    if _COMMIT.fullmatch(commit) and (repository / "snapshots" / commit).is_dir():
        return repository / "snapshots" / commit
    commits = [
        each for each in repository.glob("snapshots/*") if _COMMIT.fullmatch(each.name) and each.is_dir()
    ]
    return max(commits, key=lambda each: each.stat().st_mtime, default=None)


def _models_in(snapshot: Path, text: str) -> Iterator[Imported | Skipped]:
    ggufs = [path for path in sorted(snapshot.rglob("*.gguf")) if _is_whole_or_first(path)]
    if is_checkpoint(snapshot):
        yield _registered(text, snapshot, text)
    elif not ggufs:
        yield Skipped(text, "it has neither a GGUF file nor config.json and *.safetensors")
    for path in ggufs:
        stem = SPLIT_PART.sub("", path.stem)
        yield _registered(f"{text}:{quant_of(stem) or stem}", path, text)


def _is_whole_or_first(path: Path) -> bool:
    """Not a further part of a model in several files, and not the part of one that sees images."""
    part = SPLIT_PART.search(path.stem)
    return (part is None or int(part["number"]) == 1) and not path.name.lower().startswith("mmproj")


def _registered(text: str, path: Path, repository: str) -> Imported | Skipped:
    snapshot = path if path.is_dir() else next(p for p in path.parents if p.parent.name == "snapshots")
    try:
        record = describe(path, ModelName.parse(text))
    except NanollamaError as error:
        return Skipped(text, str(error))
    files = tuple(
        replace(file, digest=_blob_digest(where))
        for file, where in zip(record.files, record.paths, strict=True)
    )
    source = f"{repository}@{snapshot.name}"
    return Imported(replace(record, files=files, digest=_digest_of(files), source=source))


def _digest_of(files: tuple[RecordFile, ...]) -> Digest | None:
    return files[0].digest if len(files) == 1 else folder_digest(files)


def _blob_digest(path: Path) -> Digest | None:
    """The SHA-256 that the name of the blob behind a link states; small files are named otherwise."""
    name = os.path.basename(os.path.realpath(path))
    return Digest(f"sha256:{name}") if _SHA256.fullmatch(name) else None
