"""How many experts a checkpoint has: GGUF keys or a ``config.json`` in, an ExpertsSpec or ``None`` out."""

from typing import Any

from nanollama.model.families.config import Config
from nanollama.model.families.metadata import Metadata
from nanollama.model.spec import ExpertsSpec

MAX_EXPERTS = 4096


def experts_of_gguf(meta: Metadata, **more: Any) -> ExpertsSpec | None:
    """The experts of a GGUF file, ``None`` for a dense model; ``more`` are fields of ExpertsSpec.

    Raises:
        FormatError: a number is out of range.
    """
    count = meta.size("expert_count", 0, minimum=0, maximum=MAX_EXPERTS)
    if not count:
        return None
    return ExpertsSpec(count, meta.size("expert_used_count", maximum=MAX_EXPERTS), **more)


def experts_of_config(config: Config, key: str, **more: Any) -> ExpertsSpec | None:
    """The experts of a ``config.json`` that counts them under ``key``; like :func:`experts_of_gguf`."""
    count = config.size(key, 0, minimum=0, maximum=MAX_EXPERTS)
    if not count:
        return None
    return ExpertsSpec(count, config.size("num_experts_per_tok", maximum=MAX_EXPERTS), **more)
