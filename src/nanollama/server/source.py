"""Names of models in requests: a name in, a model of this machine out. Nothing is fetched.

A request can't name a path. Only what the operator gave on the command line may lie outside the store.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from nanollama.errors import ModelNotFoundError, UsageError
from nanollama.store.names import ModelName
from nanollama.store.recipe import Recipe
from nanollama.store.registry import Record, id_of, variant_id
from nanollama.store.store import Located, Store


@dataclass(frozen=True, slots=True)
class Found:
    """A model that can be loaded. ``argument`` is what ``LLM`` takes; sizes in bytes, times since 1970.

    ``digest`` is 64 hex digits: those of the file, unless somebody gave it another recipe or its digest isn't
    known. ``variant`` tells apart models that have a file in common.
    """

    id: str
    argument: str
    path: Path
    size: int
    modified: float
    digest: str = ""
    variant: str = ""
    recipe: Recipe = field(default_factory=Recipe)
    record: Record | None = None

    @property
    def key(self) -> tuple[Path, str]:
        """What can be in memory once for all names that mean it."""
        return self.path, self.variant


class ModelSource(Protocol):
    """Where the pool looks for models; tests have one of their own."""

    def find(self, name: str) -> Found:
        """The model called ``name``. Raises ``ModelNotFoundError``."""
        ...

    def list(self) -> list[Found]:
        """All models that can be asked for."""
        ...


class StoreSource:
    """The models of the store, and the one that the server was started with."""

    def __init__(self, served: str | None = None, store: Store | None = None) -> None:
        self.store = store or Store()
        self._served = None if served is None else self._operators(served)

    def _operators(self, served: str) -> Found:
        """What the operator asked for, which may be a path. Raises ``NanollamaError``."""
        located = self.store.locate(served, fetch=False)
        if located.record is not None:
            return found_of(located.record, served)
        return _found_at(located, served)

    def find(self, name: str) -> Found:
        served = self._still_served()
        if served is not None and name in (served.id, served.argument, served.path.name):
            return served
        try:
            wanted = ModelName.parse(name)
        except UsageError:
            raise self.store.unknown(name[:80]) from None
        record = self.store.find(wanted)
        if record is None:
            raise ModelNotFoundError(
                f"There is no model {name!r} on this machine; fetch it with 'nanollama pull {name}', or ask "
                "for one that /v1/models lists."
            )
        found = found_of(record)
        return served if served is not None and served.key == found.key else found

    def list(self) -> list[Found]:
        found = [found_of(record) for record in self.store.list()]
        served = self._still_served()
        if served is None:
            return found
        return [served, *(each for each in found if each.id != served.id)]

    def _still_served(self) -> Found | None:
        """The operator's model, unless it was deleted."""
        return self._served if self._served is not None and self._served.path.exists() else None


def found_of(record: Record, argument: str | None = None) -> Found:
    """The model of a record."""
    name = str(record.name)
    return Found(
        name,
        argument or name,
        record.path,
        record.size,
        record.modified,
        record.id,
        variant_id(record.weights_id, record.recipe),
        record.recipe,
        record,
    )


def _found_at(located: Located, argument: str) -> Found:
    path, recipe = located.path, located.recipe
    status = path.stat()
    size = status.st_size
    if path.is_dir():
        size = sum(each.stat().st_size for each in path.iterdir() if each.is_file())
    weights = id_of(f"{path} {size} {status.st_mtime}")
    return Found(
        path.stem, argument, path, size, status.st_mtime, weights, variant_id(weights, recipe), recipe
    )
