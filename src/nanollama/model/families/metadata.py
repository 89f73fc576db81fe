"""Typed, bounded access to one architecture's GGUF keys: metadata in, checked numbers out.

A family file asks for ``block_count`` and gets an integer in range, or an error that names the full key and
the value.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from nanollama.errors import FormatError

MAX_SIZE = 1 << 24
"""No width, head count or vocabulary of a real model comes near 16 million: such a file is damaged."""

MIN_NUMBER, MAX_NUMBER = 1e-30, 1e12
"""Norms' epsilons, the smallest numbers in use, are 1e-6, and rotary bases, the largest, 1e9."""


@dataclass(frozen=True)
class Metadata:
    """The keys ``<architecture>.<name>`` of a file, plus what only its tensors tell.

    ``values`` is the whole key-value table, ``vector`` reads a small float tensor by its GGUF name (``None``
    if the file has no such tensor), and ``has_tensor`` tells whether a tensor exists.
    """

    architecture: str
    values: Mapping[str, Any]
    vector: Callable[[str], tuple[float, ...] | None]
    has_tensor: Callable[[str], bool]
    vocab_size: int

    def _get(self, name: str) -> tuple[str, Any]:
        key = f"{self.architecture}.{name}"
        return key, self.values.get(key)

    def size(
        self, name: str, default: int | None = None, *, minimum: int = 1, maximum: int = MAX_SIZE
    ) -> int:
        """A whole number from ``minimum`` to ``maximum``.

        Raises:
            FormatError: the key is missing (and has no default), not an integer, or out of range.
        """
        key, value = self._get(name)
        if value is None and default is not None:
            return default
        # Some writers store one number per layer; equal entries mean one number.
        if isinstance(value, list | tuple) and value and all(v == value[0] for v in value):
            value = value[0]
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
            raise FormatError(
                f"{key} is {_shown(value)}; expected a whole number from {minimum} to {maximum}"
            )
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A positive finite float; raises FormatError like :meth:`size`."""
        key, value = self._get(name)
        if value is None and default is not None:
            return default
        if not is_positive(value):
            raise FormatError(f"{key} is {_shown(value)}; expected a positive number")
        return float(value)

    def text(self, name: str, default: str) -> str:
        """A string; raises FormatError if the key holds something else."""
        key, value = self._get(name)
        if value is None:
            return default
        if not isinstance(value, str):
            raise FormatError(f"{key} is {_shown(value)}; expected a text")
        return value


def is_positive(value: object) -> TypeGuard[int | float]:
    """Whether this is a number as models state it: neither 0 nor so small or large that squares are."""
    return not isinstance(value, bool) and isinstance(value, int | float) and MIN_NUMBER < value < MAX_NUMBER


def _shown(value: object) -> str:
    return "missing" if value is None else repr(value)[:60]
