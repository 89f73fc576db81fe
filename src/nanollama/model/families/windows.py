"""Which layers see only a window: GGUF keys or a ``config.json`` in, each layer's window or ``None`` out."""

from nanollama.model.families.config import Config
from nanollama.model.families.metadata import Metadata

Windows = tuple[int | None, ...]


def pattern(window: int | None, every: int, num_layers: int) -> Windows:
    """Each ``every``-th layer sees everything, the others ``window`` tokens."""
    return tuple(None if (i + 1) % every == 0 else window for i in range(num_layers))


def windows_of_gguf(meta: Metadata, every: int, num_layers: int) -> Windows:
    """The windows of a family whose each ``every``-th layer sees everything."""
    return pattern(meta.size("attention.sliding_window"), every, num_layers)


def windows_of_config(config: Config, default: Windows, *, switch: str | None = None) -> Windows:
    """The windows that ``layer_types`` says, ``default`` where the file has none.

    ``switch`` names a key that has to be true for any window to count.

    Raises:
        FormatError: the list does not name each layer, or names what is not known.
    """
    window = config.size("sliding_window", 0, minimum=0) or None
    if switch is not None and not config.flag(switch, False):
        return (None,) * len(default)
    kinds = config.choices("layer_types", len(default), ("full_attention", "sliding_attention"))
    if kinds is None:
        return default
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)
