"""What to fetch for a name: a target as the user gave it in, a ``PullPlan`` with every file out.

A target is a name of the catalogue, ``hf.co/user/repo[:quantization]``, or the address of a .gguf file. A
plan is pinned: it states the size of each file, its SHA-256 where somebody knows it, and the commit it comes
from. Its file names are plain names without folders, each once.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import unquote, urlsplit

from nanollama.errors import DownloadError, ModelNotFoundError, UsageError
from nanollama.store.catalogue import CATALOGUE, Entry, HubFile, HubRepo, Source, UrlFile, find_entry
from nanollama.store.choose import choose_gguf, choose_safetensors, quant_of
from nanollama.store.fetch import Fetcher, HttpError, is_internal
from nanollama.store.hub import REPO, HubListing, list_repo
from nanollama.store.names import DEFAULT_TAG, Digest, ModelName
from nanollama.store.transfer import SourceError

HUB_HOST = "hf.co"
_HUB_HOSTS = frozenset({"hf.co", "huggingface.co", "www.huggingface.co"})
_MAX_TARGET = 2048
_NOT_IN_A_NAME = re.compile(r"[^a-z0-9._-]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Hosts:
    """Where a caller may have files fetched from beside catalogue and hub: ``anywhere``, or ``names``."""

    anywhere: bool = False
    names: frozenset[str] = frozenset()

    def allows(self, host: str) -> bool:
        return self.anywhere or host in self.names


ANY = Hosts(anywhere=True)
"""For the user at the terminal."""

HUB_ONLY = Hosts()
"""For callers over HTTP."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file to fetch: its plain name here, its bytes, its digest if known, and who has it, in order."""

    path: str
    size: int
    digest: Digest | None
    sources: tuple[Source, ...]


@dataclass(frozen=True, slots=True)
class PullPlan:
    """All of a model. ``source`` says in one word where it comes from, with the commit where there is one."""

    name: ModelName
    format: Literal["gguf", "safetensors"]
    files: tuple[RemoteFile, ...]
    licence: str | None
    source: str
    sampling: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HubTarget:
    """``hf.co/user/repo[:quant]``, or one ``file`` of it."""

    name: ModelName
    repo: HubRepo
    file: str | None = None


@dataclass(frozen=True, slots=True)
class UrlTarget:
    """The address of one file."""

    name: ModelName
    url: str


Target = Entry | HubTarget | UrlTarget


def plan_for(
    target: str, fetcher: Fetcher, *, catalogue: tuple[Entry, ...] = CATALOGUE, hosts: Hosts = ANY
) -> PullPlan:
    """What has to be fetched for ``target``. A pinned entry needs no network.

    Raises ``UsageError`` for what is no target or not allowed by ``hosts``, ``ModelNotFoundError`` for what
    is neither in the catalogue nor on the hub, and ``DownloadError`` where the answer can't be used.
    """
    parsed = parse_target(target, catalogue, hosts)
    try:
        if isinstance(parsed, UrlTarget):
            return _plan_of_url(parsed, fetcher)
        if isinstance(parsed, HubTarget):
            return _plan_of_repo(parsed, fetcher)
        return _plan_of_entry(parsed, fetcher)
    except HttpError as error:
        if error.status not in {401, 404}:
            raise _can_not_plan(parsed, error) from None
        where = f"{parsed.name} is not there, or only for those who may see it"
        raise ModelNotFoundError(f"{where} ({error}): check the spelling") from None
    except SourceError as error:
        raise _can_not_plan(parsed, error) from None


def parse_target(target: str, catalogue: tuple[Entry, ...] = CATALOGUE, hosts: Hosts = ANY) -> Target:
    """What ``target`` means; its ``name`` is the one it will have here. Nothing is looked up anywhere."""
    if len(target) > _MAX_TARGET or not target.isascii() or not target.isprintable():
        raise UsageError(f"{target[:80]!a} can't be pulled: it is neither a name nor an address")
    if "://" in target:
        return _parse_url(target, hosts)
    host, _, path = target.partition("/")
    if host.lower() in _HUB_HOSTS:
        repo, colon, tag = path.partition(":")
        return _hub_target(repo, tag if colon else DEFAULT_TAG)
    entry = find_entry(ModelName.parse(target), catalogue)
    if entry is None:
        raise _unknown(target, catalogue)
    return entry


def _parse_url(target: str, hosts: Hosts) -> Target:
    try:
        url = urlsplit(target)
        host, port = (url.hostname or "").lower(), url.port
    except ValueError:
        raise UsageError(f"{target!r} is not a valid address: expected https://host/path/file.gguf") from None
    if url.scheme not in {"http", "https"} or not host:
        raise UsageError(f"{target!r} is not an address to fetch from: expected https://host/path/file.gguf")
    if url.username is not None or url.password is not None:
        raise UsageError("an address to fetch from can't hold a user name or a password")
    if host in _HUB_HOSTS:
        return _parse_hub_url(unquote(url.path))
    if not hosts.allows(host):
        raise UsageError(
            f"{host} is not a place to pull from here: give a name of the catalogue or hf.co/user/repo"
        )
    if url.scheme == "http" and not is_internal(host):
        raise UsageError(f"{host} would be asked without encryption: give the address with https://")
    path, _, file = unquote(url.path).rpartition("/")
    folder = path.rpartition("/")[2] or "files"
    if not file.lower().endswith(".gguf"):
        raise UsageError(f"{target!r} is not the address of a .gguf file: give one that ends in .gguf")
    place = host if port is None else f"{host}:{port}"
    return UrlTarget(_name_of_file(place, folder, file), target)


def _parse_hub_url(path: str) -> HubTarget:
    """``/user/repo``, or ``/user/repo/resolve/revision/file.gguf`` as a browser shows it (``blob``)."""
    parts = [part for part in path.split("/") if part]
    if len(parts) == 2:
        repo, colon, tag = "/".join(parts).partition(":")
        return _hub_target(repo, tag if colon else DEFAULT_TAG)
    if len(parts) >= 5 and parts[2] in {"resolve", "blob"} and parts[-1].lower().endswith(".gguf"):
        tag = _slug(parts[-1][: -len(".gguf")])
        target = _hub_target("/".join(parts[:2]), tag)
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", parts[3]):
            raise UsageError(f"{parts[3][:80]!r} is not a revision: expected a commit, a branch or a tag")
        return HubTarget(target.name, HubRepo(target.repo.repo, None, parts[3]), "/".join(parts[4:]))
    raise UsageError("an address on the hub names a repository, or a .gguf file in it")


def _hub_target(repo: str, tag: str) -> HubTarget:
    if not REPO.fullmatch(repo) or ".." in repo or "--" in repo:
        raise UsageError(f"{repo[:80]!r} is not a repository of the hub: expected hf.co/user/repo[:quant]")
    name = ModelName.parse(f"{HUB_HOST}/{repo}:{tag}")
    return HubTarget(name, HubRepo(repo, None if name.tag == DEFAULT_TAG else tag))


def _name_of_file(place: str, folder: str, file: str) -> ModelName:
    """A name for a file found at an address: ``host/folder/stem:quantization``."""
    stem = file[: -len(".gguf")]
    quant = quant_of(stem)
    model = stem[: -len(quant) - 1] if quant else stem
    return ModelName.parse(f"{place}/{_slug(folder)}/{_slug(model)}:{_slug(quant or DEFAULT_TAG)}")


def _slug(text: str) -> str:
    """``text`` as a part of a name."""
    return (
        re.sub(r"\.\.+", ".", _NOT_IN_A_NAME.sub("-", text.lower())).strip("._-")[:80].strip("._-") or "file"
    )


def _plan_of_entry(entry: Entry, fetcher: Fetcher) -> PullPlan:
    if entry.repo is None:
        assert entry.file is not None, "an entry is pinned or has a repository"
        assert entry.size is not None, "a pinned entry states its size"
        file = RemoteFile(entry.file, entry.size, entry.digest, entry.sources)
        return PullPlan(entry.name, "gguf", (file,), entry.licence, "catalogue", entry.sampling)
    listing = list_repo(fetcher, entry.repo.repo, entry.repo.revision)
    return _plan(entry.name, listing, entry.repo.quant, entry.licence, entry.sampling)


def _plan_of_repo(target: HubTarget, fetcher: Fetcher) -> PullPlan:
    listing = list_repo(fetcher, target.repo.repo, target.repo.revision)
    if target.file is not None:
        chosen = tuple(file for file in listing.files if file.path == target.file)
        if len(chosen) != 1:
            raise SourceError("the repository has no such file")
        listing = HubListing(listing.repo, listing.commit, listing.licence, chosen)
    return _plan(target.name, listing, target.repo.quant, listing.licence, {})


def _plan(
    name: ModelName,
    listing: HubListing,
    quant: str | None,
    licence: str | None,
    sampling: Mapping[str, float],
) -> PullPlan:
    chosen = choose_gguf(listing.files, quant)
    is_gguf = bool(chosen)
    if not is_gguf:
        if quant is not None:
            raise SourceError(f"the repository has no GGUF file, so there is no {quant} of it")
        chosen = choose_safetensors(listing.files)
    files = tuple(
        RemoteFile(
            file.path.rpartition("/")[2],
            file.size,
            file.digest,
            (HubFile(listing.repo, listing.commit, file.path),),
        )
        for file in chosen
    )
    source = f"{HUB_HOST}/{listing.repo}@{listing.commit}"
    return PullPlan(name, "gguf" if is_gguf else "safetensors", files, licence, source, sampling)


def _plan_of_url(target: UrlTarget, fetcher: Fetcher) -> PullPlan:
    """A plan from the first bytes at the address, which tell a model from a page that says where it went."""
    start, size, etag = fetcher.inspect(target.url, 4)
    if start != b"GGUF":
        raise SourceError("what is there does not begin like a GGUF file")
    if size is None:
        raise SourceError("it does not say how large the file is")
    strong = etag if etag and etag.isprintable() and not etag.startswith("W/") else None
    source = UrlFile(target.url, strong)
    file = RemoteFile(f"{_slug(_stem(target.url))}.gguf", size, None, (source,))
    return PullPlan(target.name, "gguf", (file,), None, target.url)


def _stem(url: str) -> str:
    return unquote(urlsplit(url).path).rpartition("/")[2][: -len(".gguf")]


def _can_not_plan(target: Target, error: SourceError) -> DownloadError:
    if isinstance(target, UrlTarget):
        what, who = target.url, urlsplit(target.url).hostname
    else:
        what, who = str(target.name), "Hugging Face"
    return DownloadError(
        f"{what} could not be looked up ({who}: {error}): check the spelling and the network connection"
    )


def _unknown(target: str, catalogue: tuple[Entry, ...]) -> ModelNotFoundError:
    from difflib import get_close_matches

    known = sorted(str(entry.name) for entry in catalogue)
    close = get_close_matches(target.lower(), known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else f"the catalogue has {', '.join(known)}"
    return ModelNotFoundError(f"there is no model {target!r} (hf.co/user/repo works too): {hint}")
