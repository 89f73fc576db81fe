"""A budget for code that comes with a model: in comes a job, out comes its result, or one clear error.

Time is limited from outside: the job runs in a thread of its own, which is interrupted when the limit is
reached, so that an interruption can never hit a caller's thread. Python can't interrupt a single long
operation written in C, so sizes are limited from inside: a `Meter` is asked before and told after everything
that makes text or lists.
"""

import sys
import threading
from collections.abc import Callable, Iterable, MappingView
from typing import Any, Generic, TypeVar

from nanollama.errors import TemplateError

T = TypeVar("T")

_GRACE_S = 1.0
"""How long an interrupted job may take to unwind before its thread is left to itself."""

_ALLOWANCE = 32
"""Bytes that all intermediate values of one job may take together, as a multiple of its longest text."""

_MAX_DEPTH = 100
"""Nesting of lists and dictionaries. JSON schemas in use stay under 20; CPython's C stack gives way at some
10,000.
"""

_NODE_WEIGHT = 4
"""What a list or dictionary entry weighs in characters: the brackets and commas it is printed with."""

_CONTAINERS = (list, tuple, dict, MappingView)


class _Worker(threading.Thread, Generic[T]):
    """Runs one job and keeps its outcome."""

    value: T

    def __init__(self, job: Callable[[], T]) -> None:
        super().__init__(name="nanollama-template", daemon=True)
        self.error: BaseException | None = None
        self._job = job
        self._finished = False
        self._closing = threading.Lock()

    def run(self) -> None:
        try:
            self.value = self._job()
        except BaseException as error:  # also the interruption: whatever happened is the caller's to see
            self.error = error
        with self._closing:
            self._finished = True

    def interrupt(self) -> None:
        """Raise `SystemExit` in the thread at its next Python instruction; threads end silently on it.

        The lock keeps the thread from ending, and its id from being given to another one, in between.
        """
        import ctypes

        with self._closing:
            if not self._finished and self.ident is not None:
                target = ctypes.c_ulong(self.ident)
                ctypes.pythonapi.PyThreadState_SetAsyncExc(target, ctypes.py_object(SystemExit))


def run_within(limit_s: float, job: Callable[[], T]) -> T:
    """The result of ``job()``.

    Raises:
        TemplateError: it took longer than ``limit_s`` seconds.
        Exception: what the job raised.
    """
    worker = _Worker(job)
    worker.start()
    try:
        worker.join(limit_s)
    except BaseException:
        worker.interrupt()
        raise
    if not worker.is_alive():
        if worker.error is not None:
            raise worker.error.with_traceback(None)  # whose frames would keep all the job made
        return worker.value
    # One interruption is lost when it arrives inside a destructor, so it is repeated.
    for _ in range(20):
        worker.interrupt()
        worker.join(_GRACE_S / 20)
        if not worker.is_alive():
            break
    raise TemplateError(
        f"The chat template was stopped after {limit_s:g} s, its time limit; shorten the conversation or use "
        "a model with another template."
    )


class Meter(threading.local):
    """Counts what one job makes. Being thread-local, it starts at zero for every job of `run_within`."""

    def __init__(self, max_chars: int) -> None:
        self.max_chars = max_chars
        self._left = _ALLOWANCE * max_chars

    def expect(self, chars: int) -> None:
        """Refuse an operation that would make a text of ``chars`` characters, before it is made."""
        if chars > self.max_chars:
            raise TemplateError(
                f"The chat template was stopped before it made a text or list of length {chars:,}; the limit "
                f"is {self.max_chars:,}. Shorten the conversation or use a model with another template."
            )

    def spend(self, size: int) -> None:
        """Take ``size`` bytes from the allowance that all values of this job share."""
        self._left -= size
        if self._left < 0:
            raise TemplateError(
                f"The chat template was stopped because its intermediate values took more than "
                f"{_ALLOWANCE * self.max_chars:,} bytes. Shorten the conversation or use a model with "
                "another template."
            )

    def made(self, value: T, each: int = 0) -> T:
        """``value``, once its size is counted, with ``each`` bytes for every entry of a list."""
        if isinstance(value, str):
            self.expect(len(value))
            self.spend(sys.getsizeof(value))
        elif isinstance(value, (list, tuple, dict)):
            self.spend(sys.getsizeof(value) + each * len(value))
        return value

    def weigh(self, value: Any) -> int:
        """Upper bound in characters of ``value`` as text, shared parts counted as often as they are printed.

        Refuses what is over ``max_chars`` or nested too deeply. A list that holds itself twice, thirty levels
        deep, is a few hundred bytes in memory; printing, comparing or hashing it would take C code hours that
        nothing can interrupt.
        """
        if isinstance(value, str):
            self.expect(len(value))
            return len(value)
        weight, depth = _NODE_WEIGHT, 0
        level = [value] if isinstance(value, _CONTAINERS) or _is_namespace(value) else []
        while level:
            depth += 1
            if depth > _MAX_DEPTH:
                raise TemplateError(f"The chat template nested a value more than {_MAX_DEPTH} levels deep.")
            below: list[Any] = []
            for container in level:
                for child in _children(container):
                    weight += _NODE_WEIGHT
                    if isinstance(child, str):
                        weight += len(child)
                    elif isinstance(child, _CONTAINERS) or _is_namespace(child):
                        below.append(child)
                self.expect(weight)
            level = below
        return weight


def _is_namespace(value: Any) -> bool:
    return type(value).__name__ == "Namespace"


def _children(container: Any) -> Iterable[Any]:
    if _is_namespace(container):
        # Jinja's namespace answers every attribute from its own table, this one excepted.
        container = container._Namespace__attrs
    if isinstance(container, dict):
        return [*container.keys(), *container.values()]
    return container  # type: ignore[no-any-return]  # a list, tuple or view
