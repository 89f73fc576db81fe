"""Stores, catalogues and hubs for one test each, cut off from the machine's settings."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hub_server import CONTENT, LocalHub
from models import make_gguf, record_for
from nanollama.store.catalogue import Entry, HubFile, Source
from nanollama.store.download import DownloadSettings, download
from nanollama.store.fetch import Fetcher, FetchSettings
from nanollama.store.names import Digest, ModelName
from nanollama.store.plans import plan_for
from nanollama.store.registry import Record
from nanollama.store.store import Store
from nanollama.store.transfer import Progress

MakeEntry = Callable[..., Entry]
MakeStore = Callable[..., Store]


@pytest.fixture
def hub() -> Iterator[LocalHub]:
    hub = LocalHub()
    yield hub
    hub.close()


@pytest.fixture
def other_hub() -> Iterator[LocalHub]:
    hub = LocalHub()
    yield hub
    hub.close()


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of this machine reaches the tests, and pip can't reach an index."""
    for name in ("HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE", "PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")


@pytest.fixture
def make_entry() -> MakeEntry:
    """Makes the catalogue entry of a small model, by default ``CONTENT`` from the hub."""

    def make(*sources: Source, content: bytes = CONTENT, size: int | None = None) -> Entry:
        return Entry(
            name=ModelName.parse("toy:1b"),
            file="toy.gguf",
            size=len(content) if size is None else size,
            digest=Digest(f"sha256:{hashlib.sha256(content).hexdigest()}"),
            licence="MIT",
            sources=sources or (HubFile("org/toy", "abc", "toy.gguf"),),
        )

    return make


@pytest.fixture
def make_store(tmp_path: Path, hub: LocalHub, make_entry: MakeEntry) -> MakeStore:
    """Makes a store in an empty folder whose catalogue is ``entry`` and whose hub is ``hub``."""

    def make(entry: Entry | None = None, **settings: object) -> Store:
        fetcher = Fetcher(FetchSettings(**({"endpoint": hub.url} | settings)))
        return Store(tmp_path / "models", fetcher, (entry or make_entry(),), backoff_s=0)

    return make


class Recorder:
    """Keeps what a progress is told."""

    def __init__(self) -> None:
        self.notices: list[str] = []
        self.begun: list[tuple[str, int, int]] = []
        self.updates: list[int] = []
        self.ended = 0

    def begin(self, what: str, total: int, done: int = 0, unit: str = "B") -> None:
        self.begun.append((what, total, done))

    def update(self, done: int) -> None:
        self.updates.append(done)

    def end(self) -> None:
        self.ended += 1

    def notice(self, text: str) -> None:
        self.notices.append(text)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def fetch(tmp_path: Path, hub: LocalHub, make_entry: MakeEntry) -> Callable[..., Path]:
    """Fetches the catalogue entry of a small model from ``hub`` into ``tmp_path / "model"``: its path."""

    def fetch(
        progress: Progress | None = None,
        entry: Entry | None = None,
        download_settings: DownloadSettings | None = None,
        **settings: object,
    ) -> Path:
        fetcher = Fetcher(FetchSettings(**({"endpoint": hub.url} | settings)))
        plan = plan_for("toy:1b", fetcher, catalogue=(entry or make_entry(),))
        how = download_settings or DownloadSettings(backoff_s=0)
        (file,) = download(plan, tmp_path / "model", fetcher, progress, how)
        return tmp_path / "model" / file.name

    return fetch


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store without a catalogue."""
    return Store(tmp_path / "store", catalogue=())


@pytest.fixture
def fetched(store: Store) -> Record:
    """A model ``a`` whose file nanollama has fetched."""
    path = make_gguf(store.folder(ModelName.parse("a")) / "a.gguf")
    (path.parent / ".lock").touch()
    return store.add(record_for(path, "a", owned=True))


@pytest.fixture
def imported(store: Store, tmp_path: Path) -> Record:
    """A model ``b`` whose file lies elsewhere."""
    return store.import_path(str(make_gguf(tmp_path / "elsewhere/b.gguf")), ModelName.parse("b"))
