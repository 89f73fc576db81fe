"""What the hub's API says: a repository in, its files at one commit out; words in, repositories out.

Everything in an answer is somebody else's text. Here it becomes typed values within limits; whether a name is
one to write to is decided by ``choose.py``, and what a file really holds by its digest.
"""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nanollama.errors import DownloadError, FormatError
from nanollama.store.fetch import Fetcher
from nanollama.store.names import Digest
from nanollama.store.transfer import InterruptedTransferError, SourceError

REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}", re.ASCII)
_MAX_FILES = 50_000
_MAX_FILE_BYTES = 1 << 44
_MAX_WORD = 200
_ATTEMPTS = 4
_LONGEST_WAIT_S = 10.0


@dataclass(frozen=True, slots=True)
class HubEntry:
    """One file of a repository, by the name it has there, which may be hostile."""

    path: str
    size: int
    digest: Digest | None


@dataclass(frozen=True, slots=True)
class HubListing:
    """The files of ``repo`` at ``commit``."""

    repo: str
    commit: str
    licence: str | None
    files: tuple[HubEntry, ...]


@dataclass(frozen=True, slots=True)
class HubModel:
    """One repository that a search found; ``name`` is what ``pull`` takes. Counts are those of the hub."""

    name: str
    downloads: int
    likes: int
    modified: str


def list_repo(fetcher: Fetcher, repo: str, revision: str = "main", backoff_s: float = 0.5) -> HubListing:
    """What ``repo`` has at ``revision``, pinned to its commit. Raises ``SourceError``."""
    path = f"api/models/{repo}/revision/{revision}"
    answer = _ask(fetcher, path, {"blobs": "true"}, backoff_s)
    if not isinstance(answer, dict) or not isinstance(answer.get("siblings"), list):
        raise SourceError("its answer is not the description of a repository")
    commit = answer.get("sha")
    if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
        raise SourceError("its answer does not name a commit")
    siblings = answer["siblings"]
    if len(siblings) > _MAX_FILES:
        raise SourceError(f"the repository has more than {_MAX_FILES} files")
    return HubListing(repo, commit, _licence(answer), tuple(_entry(sibling) for sibling in siblings))


def hub_search(fetcher: Fetcher, text: str, limit: int = 20, backoff_s: float = 0.5) -> list[HubModel]:
    """Repositories with GGUF files that match ``text``, the most downloaded first.

    Raises ``DownloadError`` where the hub can't be asked.
    """
    query = {"search": text[:_MAX_WORD], "filter": "gguf", "sort": "downloads", "direction": "-1"}
    try:
        answer = _ask(fetcher, "api/models", query | {"limit": str(limit)}, backoff_s)
    except SourceError as error:
        raise DownloadError(
            f"the hub could not be searched (Hugging Face: {error}): check the network connection"
        ) from None
    models = []
    for row in answer if isinstance(answer, list) else []:
        if isinstance(row, dict) and isinstance(name := row.get("id"), str) and REPO.fullmatch(name):
            downloads, likes = _count(row.get("downloads")), _count(row.get("likes"))
            models.append(HubModel(f"hf.co/{name}", downloads, likes, _word(row.get("lastModified")) or ""))
    return models[:limit]


def _ask(fetcher: Fetcher, path: str, query: Mapping[str, str], backoff_s: float) -> Any:
    """The JSON of one question, asked again where the hub is busy or the connection breaks."""
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return fetcher.ask_hub(path, query)
        except InterruptedTransferError as error:
            wait = backoff_s * 2**attempt if error.retry_after is None else error.retry_after
            if attempt == _ATTEMPTS or wait > _LONGEST_WAIT_S:
                raise
            time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")


def _entry(sibling: object) -> HubEntry:
    wrong = SourceError("its list of files has an entry without a name, a size or a proper digest")
    if not isinstance(sibling, dict):
        raise wrong
    path, size, lfs = sibling.get("rfilename"), sibling.get("size"), sibling.get("lfs")
    if not isinstance(path, str) or isinstance(size, bool) or not isinstance(size, int):
        raise wrong
    if not 0 <= size <= _MAX_FILE_BYTES:
        raise SourceError("its list of files states a size that no file has")
    if lfs is None:
        return HubEntry(path, size, None)
    if not isinstance(lfs, dict) or not isinstance(digest := lfs.get("sha256"), str):
        raise wrong
    try:
        return HubEntry(path, size, Digest(f"sha256:{digest}"))
    except FormatError:
        raise wrong from None


def _licence(answer: Mapping[str, Any]) -> str | None:
    card = answer.get("cardData")
    if not isinstance(card, dict):
        return None
    return _word(card.get("license_name")) or _word(card.get("license"))


def _word(value: object) -> str | None:
    """``value`` if it is a short text that can be shown."""
    return value if isinstance(value, str) and value.isprintable() and 0 < len(value) <= _MAX_WORD else None


def _count(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0
