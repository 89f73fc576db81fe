"""The table of architectures: what a file calls its architecture, to the family that reads it.

A new architecture is one row here and one file in ``families/``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nanollama.errors import FormatError, UnsupportedError
from nanollama.formats.names import FUSED, GEMMA_NORMS, OSS_NORMS
from nanollama.model.families import (
    gemma2,
    gemma3,
    gpt_oss,
    granite,
    llama,
    olmo2,
    phi3,
    qwen2,
    qwen3,
    smollm3,
)
from nanollama.model.families.config import Config
from nanollama.model.families.metadata import Metadata
from nanollama.model.parameters import parameters
from nanollama.model.spec import ModelSpec

if TYPE_CHECKING:
    from nanollama.model.checkpoint import PackedTensor


@dataclass(frozen=True, slots=True)
class Family:
    """How to read one architecture: ``gguf`` is its ``general.architecture``, ``model_types`` are those of
    Hugging Face.

    ``pairs_interleaved`` says that the GGUF converter reordered the rows of q and k so that rotated pairs are
    neighbours; loading puts them back into the half-split order that the recipe uses everywhere.
    ``norm_offset`` is what Hugging Face checkpoints leave out of norm weights and GGUF files have added.
    ``gguf_names`` are the parts of a layer whose names differ from ``formats/names.py``'s.
    ``experts_interleaved`` is about how Hugging Face checkpoints store experts: see ``model/parameters.py``.
    """

    gguf: str
    model_types: tuple[str, ...]
    from_gguf: Callable[[Metadata], ModelSpec]
    from_config: Callable[[Config], ModelSpec]
    pairs_interleaved: bool = False
    norm_offset: float = 0.0
    gguf_names: Mapping[str, str] = field(default_factory=dict)
    experts_interleaved: bool = False

    def folder_parameters(
        self, spec: ModelSpec, tensors: "Mapping[str, PackedTensor]"
    ) -> "dict[str, PackedTensor]":
        """The parameters in a Hugging Face checkpoint's ``tensors``; raises FormatError."""
        return parameters(
            spec, tensors, norm_offset=self.norm_offset, experts_interleaved=self.experts_interleaved
        )


_ROWS = (
    Family(
        "llama", ("llama", "mistral", "mixtral"), llama.from_gguf, llama.from_config, pairs_interleaved=True
    ),
    Family("qwen2", ("qwen2",), qwen2.from_gguf, qwen2.from_config),
    Family("qwen3", ("qwen3",), qwen3.from_gguf, qwen3.from_config),
    Family("qwen3moe", ("qwen3_moe",), qwen3.from_gguf, qwen3.from_config),
    Family(
        "gemma2", ("gemma2",), gemma2.from_gguf, gemma2.from_config, norm_offset=1.0, gguf_names=GEMMA_NORMS
    ),
    Family(
        "gemma3",
        ("gemma3_text",),
        gemma3.from_gguf,
        gemma3.from_config,
        norm_offset=1.0,
        gguf_names=GEMMA_NORMS,
    ),
    Family("phi3", ("phi3",), phi3.from_gguf, phi3.from_config, gguf_names=FUSED),
    Family("granite", ("granite",), granite.from_gguf, granite.from_config, pairs_interleaved=True),
    Family("olmo2", ("olmo2",), olmo2.from_gguf, olmo2.from_config, gguf_names=GEMMA_NORMS),
    Family("smollm3", ("smollm3",), smollm3.from_gguf, smollm3.from_config, pairs_interleaved=True),
    Family(
        "gpt-oss",
        ("gpt_oss",),
        gpt_oss.from_gguf,
        gpt_oss.from_config,
        gguf_names=OSS_NORMS,
        experts_interleaved=True,
    ),
)

FAMILIES: dict[str, Family] = {family.gguf: family for family in _ROWS}
MODEL_TYPES: dict[str, Family] = {name: family for family in _ROWS for name in family.model_types}


def family_of(architecture: str) -> Family:
    """The family of a GGUF architecture name.

    Raises:
        UnsupportedError: no family reads it.
    """
    return _row(FAMILIES, architecture, "architecture")


def family_of_config(config: Mapping[str, Any]) -> Family:
    """The family of a ``config.json``.

    Raises:
        FormatError: it does not say what model it is of.
        UnsupportedError: no family reads it.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise FormatError(
            f"model_type in config.json is {'missing' if model_type is None else repr(model_type)[:60]}; "
            "expected the name of an architecture"
        )
    if model_type not in MODEL_TYPES and config.get("auto_map"):
        raise UnsupportedError(
            f"the model type {model_type!r} is defined by code in the model's own repository, which is never "
            f"run; supported are {', '.join(sorted(MODEL_TYPES))}"
        )
    return _row(MODEL_TYPES, model_type, "model type")


def _row(table: Mapping[str, Family], name: str, what: str) -> Family:
    family = table.get(name)
    if family is None:
        raise UnsupportedError(
            f"the {what} {name!r} is not supported; supported are {', '.join(sorted(table))}"
        )
    return family
