"""What to tell about quantizing a model: facts about source and target in, a sentence or a refusal out."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from nanollama.errors import UsageError
from nanollama.units import size_text

if TYPE_CHECKING:
    from nanollama.quant.requantize import Source

FULL_PRECISION = ("F32", "F16", "BF16", "F64")
_HEADER_ROOM = 64 << 20  # for metadata, of which a vocabulary is most


def check_room(destination: Path, n_bytes: int) -> None:
    """Raises ``UsageError`` where the disk is too full for ``n_bytes`` of weights."""
    free = shutil.disk_usage(destination.parent).free
    if free < n_bytes + _HEADER_ROOM:
        raise UsageError(
            f"{size_text(n_bytes)} are needed in {destination.parent} and {size_text(free)} are free: "
            "make room there, or have it written elsewhere"
        )


def loss_notice(source: "Source") -> str | None:
    """What to tell about a source that was quantized before, or nothing."""
    names = {t.fmt.name for t in source.tensors if len(t.shape) > 1}
    packed = sorted(names.difference(FULL_PRECISION))
    if not packed:
        return None
    return (
        f"{source.label} is quantized already ({', '.join(packed)}): what was lost then stays lost; "
        "weights in F16 or F32 give better results"
    )


def misfit_notice(misfits: Mapping[str, str], wanted: str) -> str:
    """Which matrices got another type because of their width, those of all layers in one."""
    kinds: dict[str, dict[str, int]] = {}
    for name, fmt in misfits.items():
        kind = [part for part in name.split(".") if not part.isdigit() and part not in ("blk", "weight")]
        counts = kinds.setdefault(fmt, {})
        counts[".".join(kind)] = counts.get(".".join(kind), 0) + 1
    listed = "; ".join(
        f"{fmt} for " + ", ".join(f"{kind} ({n})" if n > 1 else kind for kind, n in counts.items())
        for fmt, counts in kinds.items()
    )
    return f"these have rows that are no whole number of {wanted} blocks, and got {listed}"
