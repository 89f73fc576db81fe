"""What a model says about itself, read from headers only: a path in, its ``Details`` out.

Nothing of the weights is touched and nothing heavy imported, so that this costs milliseconds.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from nanollama.formats.gguf import GGUFFile
from nanollama.formats.safetensors import SafetensorsFile
from nanollama.formats.strict_json import read_object

FILE_TYPE_NAMES: dict[int, str] = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    10: "Q2_K",
    11: "Q3_K_S",
    12: "Q3_K_M",
    13: "Q3_K_L",
    14: "Q4_K_S",
    15: "Q4_K_M",
    16: "Q5_K_S",
    17: "Q5_K_M",
    18: "Q6_K",
    19: "IQ2_XXS",
    20: "IQ2_XS",
    21: "Q2_K_S",
    22: "IQ3_XS",
    23: "IQ3_XXS",
    24: "IQ1_S",
    25: "IQ4_NL",
    26: "IQ3_S",
    27: "IQ3_M",
    28: "IQ2_S",
    29: "IQ2_M",
    30: "IQ4_XS",
    31: "IQ1_M",
    32: "BF16",
    36: "TQ1_0",
    37: "TQ2_0",
    38: "MXFP4_MOE",
}
"""``general.file_type`` -> the name people use (``enum llama_ftype`` in llama.cpp's ``llama.h``)."""

_MAX_TEMPLATE = 4 << 20


@dataclass(frozen=True, slots=True)
class TensorLine:
    """One tensor: its name, its shape with the contiguous dimension last, and its type."""

    name: str
    shape: tuple[int, ...]
    type: str


@dataclass(frozen=True, slots=True)
class Details:
    """``parameters`` counts the numbers in all tensors; ``metadata`` is the GGUF's, in which an array
    stands as ``None``, or ``config.json``. What a model doesn't state is ``None``.
    """

    format: str
    architecture: str | None
    parameters: int
    quantization: str | None
    context_length: int | None
    embedding_length: int | None
    template: str | None
    licence: str | None
    tensors: tuple[TensorLine, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)


def read_details(path: Path) -> Details:
    """The details of a ``.gguf`` file or a checkpoint folder.

    Raises ``FormatError``, ``UnsupportedError`` and ``ModelNotFoundError`` like the readers of both.
    """
    return _of_folder(path) if path.is_dir() else _of_gguf(path)


def _of_gguf(path: Path) -> Details:
    with GGUFFile(path) as file:
        architecture = _text(file.metadata, "general.architecture")
        tensors = tuple(TensorLine(each.name, each.shape, each.fmt.name) for each in file.tensors.values())
        file_type = file.metadata.get("general.file_type")
        return Details(
            format="gguf",
            architecture=architecture,
            parameters=sum(prod(each.shape) for each in tensors),
            quantization=FILE_TYPE_NAMES.get(file_type) if type(file_type) is int else _usual_type(tensors),
            context_length=_count(file.metadata, f"{architecture}.context_length"),
            embedding_length=_count(file.metadata, f"{architecture}.embedding_length"),
            template=_text(file.metadata, "tokenizer.chat_template"),
            licence=_text(file.metadata, "general.license"),
            tensors=tensors,
            metadata=_scalars(file),
        )


def _of_folder(folder: Path) -> Details:
    config = read_object(folder / "config.json")
    text_config = config.get("text_config")
    inner = text_config if isinstance(text_config, dict) else config
    tensors: list[TensorLine] = []
    for path in sorted(folder.glob("*.safetensors")):
        with SafetensorsFile(path) as file:
            tensors += [TensorLine(each.name, each.shape, each.dtype) for each in file.tensors.values()]
    return Details(
        format="safetensors",
        architecture=_text(config, "model_type"),
        parameters=sum(prod(each.shape) for each in tensors),
        quantization=_usual_type(tuple(tensors)),
        context_length=_count(inner, "max_position_embeddings"),
        embedding_length=_count(inner, "hidden_size"),
        template=_folder_template(folder),
        licence=None,
        tensors=tuple(tensors),
        metadata=config,
    )


def _folder_template(folder: Path) -> str | None:
    jinja = folder / "chat_template.jinja"
    if jinja.is_file() and jinja.stat().st_size <= _MAX_TEMPLATE:
        return jinja.read_text(encoding="utf-8", errors="replace")
    settings = folder / "tokenizer_config.json"
    return _text(read_object(settings), "chat_template") if settings.is_file() else None


def _scalars(file: GGUFFile) -> dict[str, Any]:
    """The metadata; an array is not decoded and stands as ``None``."""
    return {key: file.metadata[key] if file.array_length(key) is None else None for key in file.metadata}


def _usual_type(tensors: tuple[TensorLine, ...]) -> str | None:
    """The type that most of the numbers have."""
    totals: Counter[str] = Counter()
    for each in tensors:
        totals[each.type] += prod(each.shape)
    return totals.most_common(1)[0][0] if totals else None


def _text(values: Mapping[str, Any], key: str) -> str | None:
    value = values.get(key)
    return value if isinstance(value, str) else None


def _count(values: Mapping[str, Any], key: str) -> int | None:
    value = values.get(key)
    return value if type(value) is int else None
