"""The table of architectures: ``general.architecture`` of a GGUF file to the family that reads it.

A new architecture is one row here and one file in ``families/``.
"""

from collections.abc import Callable
from dataclasses import dataclass

from nanollama.errors import UnsupportedError
from nanollama.model.families import gemma3, llama
from nanollama.model.families.metadata import Metadata
from nanollama.model.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Family:
    """How to read one architecture.

    ``pairs_interleaved`` says that the GGUF converter reordered the rows of q and k so that rotated pairs are
    neighbours; loading puts them back into the half-split order that the recipe uses everywhere.
    """

    from_gguf: Callable[[Metadata], ModelSpec]
    pairs_interleaved: bool = False


FAMILIES: dict[str, Family] = {
    "llama": Family(llama.from_gguf, pairs_interleaved=True),
    "gemma3": Family(gemma3.from_gguf),
}


def family_of(architecture: str) -> Family:
    """The family of a GGUF architecture name.

    Raises:
        UnsupportedError: no family reads it.
    """
    family = FAMILIES.get(architecture)
    if family is None:
        raise UnsupportedError(
            f"the model's architecture {architecture!r} is not supported; "
            f"supported are {', '.join(sorted(FAMILIES))}"
        )
    return family
