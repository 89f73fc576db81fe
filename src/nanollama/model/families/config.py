"""Typed, bounded access to a Hugging Face ``config.json``: its values in, checked numbers out.

A family file asks for ``num_hidden_layers`` and gets an integer in range, or an error that names the key and
the value. ``null`` counts as missing, as it does in transformers.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nanollama.errors import FormatError
from nanollama.model.families.metadata import MAX_SIZE, is_positive


@dataclass(frozen=True)
class Config:
    """The keys of a ``config.json``, or of one object inside it, which ``where`` then names.

    ``has_tensor`` tells whether the checkpoint holds a tensor of that name.
    """

    values: Mapping[str, Any]
    has_tensor: Callable[[str], bool]
    where: str = ""

    def size(
        self, name: str, default: int | None = None, *, minimum: int = 1, maximum: int = MAX_SIZE
    ) -> int:
        """A whole number from ``minimum`` to ``maximum``.

        Raises:
            FormatError: the key is missing (and has no default), not an integer, or out of range.
        """
        value = self._get(name)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
            raise self._wrong(name, value, f"a whole number from {minimum} to {maximum}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A positive finite float; raises FormatError like :meth:`size`."""
        value = self._get(name)
        if value is None and default is not None:
            return default
        if not is_positive(value):
            raise self._wrong(name, value, "a positive number")
        return float(value)

    def optional(self, name: str) -> float | None:
        """A positive finite float, ``None`` where the key is missing or ``null``."""
        return None if self._get(name) is None else self.number(name)

    def flag(self, name: str, default: bool) -> bool:
        """true or false; raises FormatError for anything else."""
        value = self._get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self._wrong(name, value, "true or false")
        return value

    def text(self, name: str, default: str) -> str:
        """A string; raises FormatError if the key holds something else."""
        value = self._get(name)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self._wrong(name, value, "a text")
        return value

    def numbers(self, name: str, length: int) -> tuple[float, ...]:
        """``length`` positive finite floats; raises FormatError like :meth:`size`."""
        value = self._get(name)
        if not isinstance(value, list) or len(value) != length or not all(map(is_positive, value)):
            raise self._wrong(name, value, f"a list of {length} positive numbers")
        return tuple(float(item) for item in value)

    def choices(self, name: str, length: int, known: tuple[str | int, ...]) -> tuple[Any, ...] | None:
        """``length`` values out of ``known``, one a layer; ``None`` where the key is missing."""
        value = self._get(name)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) != length or any(v not in known for v in value):
            expected = ", ".join(map(str, known))
            raise self._wrong(name, value, f"a list of {length} values, one a layer, out of {expected}")
        return tuple(value)

    def inside(self, name: str) -> "Config | None":
        """The object under ``name``; ``None`` where the key is missing."""
        value = self._get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self._wrong(name, value, "an object")
        return self.part(value, f"{name}.")

    def part(self, values: Mapping[str, Any], where: str = "") -> "Config":
        """Another object of the same file."""
        return Config(values, self.has_tensor, self.where + where)

    def has(self, name: str) -> bool:
        """Whether the key is there and not ``null``."""
        return self._get(name) is not None

    def expect(self, name: str, *known: object) -> None:
        """Refuse a value that the family's recipe does not follow; a missing key means the first one.

        Raises:
            FormatError: the key holds something else.
        """
        value = self._get(name)
        if value is not None and value not in known:
            raise self._wrong(name, value, " or ".join(map(repr, known)))

    def _get(self, name: str) -> Any:
        return self.values.get(name)

    def _wrong(self, name: str, value: object, expected: str) -> FormatError:
        shown = "missing" if value is None else repr(value)[:60]
        return FormatError(f"{self.where}{name} in config.json is {shown}; expected {expected}")
