"""Names of models in requests: a name in, a model file of this machine out. Nothing is fetched.

A request can't name a path. Only what the operator gave on the command line may lie outside the store.
"""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from nanollama.errors import ModelNotFoundError, UsageError
from nanollama.store.names import ModelName
from nanollama.store.store import Store


@dataclass(frozen=True, slots=True)
class Found:
    """A model that can be loaded. ``argument`` is what ``LLM`` takes; sizes in bytes, times since 1970."""

    id: str
    argument: str
    path: Path
    size: int
    modified: float


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
        self._store = store or Store()
        self._served = None if served is None else self._operators(served)

    def _operators(self, served: str) -> Found:
        """What the operator asked for, which may be a path. Raises ``NanollamaError``."""
        path = self._store.resolve(served, fetch=False)
        stored = None
        with suppress(UsageError):  # a path is no name
            stored = self._store.find(ModelName.parse(served))
        name = path.stem if stored is None else str(stored.name)
        status = path.stat()
        return Found(name, served, path, status.st_size, status.st_mtime)

    def find(self, name: str) -> Found:
        served = self._served
        if served is not None and name in (served.id, served.argument, served.path.name):
            return served
        try:
            wanted = ModelName.parse(name)
        except UsageError:
            raise self._store.unknown(name[:80]) from None
        stored = self._store.find(wanted)
        if stored is None:
            raise ModelNotFoundError(
                f"There is no model {name!r} on this machine; fetch it with 'nanollama pull {name}', or ask "
                "for one that /v1/models lists."
            )
        if served is not None and served.path == stored.path:
            return served
        return Found(str(stored.name), str(stored.name), stored.path, stored.size, stored.modified)

    def list(self) -> list[Found]:
        stored = [
            Found(str(each.name), str(each.name), each.path, each.size, each.modified)
            for each in self._store.list()
        ]
        if self._served is None:
            return stored
        return [self._served, *(each for each in stored if each.path != self._served.path)]
