"""Checks around Jinja's filters, tests and methods: in come arguments, out comes a result or an error.

Each check bounds the size of a result before it is made, exactly or from above. This module imports jinja2,
so only the sandbox imports it.
"""

import json
import re
import types
from collections.abc import Callable, Iterable, Mapping, MappingView
from datetime import datetime
from functools import wraps
from itertools import chain
from typing import Any, NoReturn

from jinja2 import TemplateError as JinjaTemplateError
from jinja2 import pass_context
from jinja2.exceptions import SecurityError
from jinja2.filters import make_attrgetter
from jinja2.runtime import Context

from nanollama.text.budget import Meter

MAX_NUMBER = 1 << 20
"""Largest whole number a filter or method takes: widths, counts, positions."""

SMALL_STRING_BYTES = 80
"""Memory of one short Python string."""

_MAX_DIGITS = 1000  # of round(): 10 to this power is made
_MAX_DATE_FORMAT = 1000  # characters; Python retries strftime with buffers of up to 256 times this

# fmt: off
_METHODS: Mapping[type, frozenset[str]] = {
    str: frozenset({
        "capitalize", "casefold", "center", "count", "endswith", "find", "format", "format_map", "index",
        "isalnum", "isalpha", "isascii", "isdecimal", "isdigit", "isidentifier", "islower", "isnumeric",
        "isprintable", "isspace", "istitle", "isupper", "join", "ljust", "lower", "lstrip", "partition",
        "removeprefix", "removesuffix", "replace", "rfind", "rindex", "rjust", "rpartition", "rsplit",
        "rstrip", "split", "splitlines", "startswith", "strip", "swapcase", "title", "upper", "zfill",
    }),
    dict: frozenset({"copy", "get", "items", "keys", "values"}),
    list: frozenset({"copy", "count", "index"}),
    tuple: frozenset({"count", "index"}),
    range: frozenset({"start", "stop", "step", "count", "index"}),
    float: frozenset({"is_integer"}),
    int: frozenset(),
    bytes: frozenset(),
    MappingView: frozenset(),
    type: frozenset(),
    types.GeneratorType: frozenset(),
}
"""What a template may look up on a built-in value. Left out are methods that amplify (``translate``,
``encode``, ``expandtabs``, ``to_bytes``) and those that lead elsewhere."""

FILTER_NAMES = (
    "abs", "attr", "batch", "capitalize", "center", "count", "d", "default", "dictsort", "e", "escape",
    "first", "float", "forceescape", "format", "groupby", "indent", "int", "items", "join", "last",
    "length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "replace", "reverse", "round",
    "safe", "select", "selectattr", "slice", "sort", "string", "sum", "title", "trim", "truncate", "unique",
    "upper", "urlencode",
)
_SHALLOW_FILTERS = frozenset({
    "attr", "batch", "count", "d", "default", "first", "items", "last", "length", "list", "map", "reject",
    "rejectattr", "reverse", "safe", "select", "selectattr", "slice",
})
_SHALLOW_TESTS = frozenset({
    "boolean", "callable", "defined", "escaped", "false", "filter", "float", "integer", "iterable", "mapping",
    "none", "number", "sameas", "sequence", "string", "test", "true", "undefined",
})
"""What looks at a value but not into it."""
# fmt: on


def is_allowed_attribute(obj: Any, name: str) -> bool:
    """Whether ``name`` of ``obj`` is in the table, or ``obj`` is of no type in it."""
    return all(name in allowed for kind, allowed in _METHODS.items() if isinstance(obj, kind))


def raise_exception(message: Any) -> NoReturn:
    """Template function: refuse the conversation."""
    raise JinjaTemplateError(str(message))


def strftime_now(format: str) -> str:
    """Template function: the local time."""
    if len(format) > _MAX_DATE_FORMAT:
        raise SecurityError(
            f"a date format of {len(format):,} characters is over the limit of {_MAX_DATE_FORMAT:,}"
        )
    return datetime.now().strftime(format)


def unfolded(function: Callable[[Any], Any]) -> Callable[[Context, Any], Any]:
    """``function`` as a filter that Jinja leaves alone while it compiles: it asks for the context."""

    @pass_context
    def late(context: Context, value: Any) -> Any:
        return function(value)

    return late


class Guards:
    """The checks themselves. They share the meter of their sandbox."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._filters: Mapping[str, Callable[..., Any]] = {
            "indent": self._before_indent,
            "join": self._before_join,
            "format": self._before_format,
            **dict.fromkeys(("batch", "groupby", "list", "slice", "sort"), self._before_list),
            "replace": self._before_replace,
            "round": self._before_round,
            "sum": self._before_sum,
        }

    def filter(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Jinja's filter ``function`` under the meter."""
        return self._around(name, function, deep=name not in _SHALLOW_FILTERS)

    def test(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Jinja's test ``function`` under the meter."""
        return self._around(name, function, deep=name not in _SHALLOW_TESTS)

    def _around(self, name: str, function: Callable[..., Any], deep: bool) -> Callable[..., Any]:
        """``function``, with every argument weighed: the first only if it looks ``deep`` into it.

        It asks for the context, so that Jinja doesn't call it while it compiles.
        """
        wants = getattr(getattr(function, "jinja_pass_arg", None), "name", None)
        before = self._filters.get(name)

        @pass_context
        @wraps(function)
        def guarded(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
            for argument in chain((value,) if deep else (), args, kwargs.values()):
                self._meter.weigh(argument)
            if name not in {"d", "default"}:
                _check_numbers(chain(args, kwargs.values()))
            if before is not None:
                value = before(context, value, *args, **kwargs)
            lead = {
                "context": (context,),
                "eval_context": (context.eval_ctx,),
                "environment": (context.environment,),
            }
            result = function(*lead.get(wants or "", ()), value, *args, **kwargs)
            return self._meter.made(result, each=SMALL_STRING_BYTES)

        return guarded

    def tojson(
        self,
        x: Any,
        ensure_ascii: bool = False,
        indent: int | str | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """``json.dumps`` without Jinja's HTML escapes."""
        self._meter.weigh(x)
        _check_numbers([indent])
        encoder = json.JSONEncoder(
            ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )
        # Indents amplify, so they are counted piece by piece. Without them the weight is bound enough.
        pieces, length = [], 0
        for piece in [encoder.encode(x)] if indent is None else encoder.iterencode(x):
            length += len(piece)
            self._meter.expect(length)
            pieces.append(piece)
        return self._meter.made("".join(pieces))

    def arguments(self, method: types.BuiltinMethodType, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments with which a built-in ``method`` may be called; a generator comes back as a list."""
        owner, name = method.__self__, method.__name__
        _check_numbers(args)
        if not isinstance(owner, str):
            return args
        if name in {"center", "ljust", "rjust", "zfill"}:
            self._meter.expect(len(owner) + sum(number for number in args if isinstance(number, int)))
        elif name == "replace" and len(args) > 1:
            self._check_replace(owner, *args[:2])
        elif name == "join" and args:
            return (self._check_join(owner, list(args[0])),)
        elif name in {"split", "rsplit", "splitlines"}:
            separator = args[0] if args and isinstance(args[0], str) else None
            pieces = owner.count(separator) if separator else sum(map(str.isspace, owner))
            self._meter.spend(pieces * SMALL_STRING_BYTES)
        return args

    def spread(self, value: Any) -> Any:
        """``value``, which is about to become a list of its items: of its characters if it is a text."""
        if isinstance(value, str):
            self._meter.spend(len(value) * SMALL_STRING_BYTES)
        return value

    def check_printf(self, template: str, values: Any) -> None:
        """Bound ``template % values``: each conversion may print the longest value and use every width."""
        arguments = (
            values.values() if isinstance(values, dict) else values if isinstance(values, tuple) else [values]
        )
        longest = max((self._meter.weigh(argument) for argument in arguments), default=0)
        starred = sum(abs(number) for number in arguments if isinstance(number, int)) * template.count("*")
        self._meter.expect(len(template) + widths(template) + starred + template.count("%") * longest)

    def _before_format(self, context: Context, value: Any, *args: Any, **kwargs: Any) -> str:
        self.check_printf(str(value), kwargs or args)
        return str(value)

    def _before_indent(
        self, context: Context, s: Any, width: int | str = 4, first: bool = False, blank: bool = False
    ) -> Any:
        lines = sum(map(str.isspace, str(s))) + 1  # every line break is white space
        self._meter.expect(len(str(s)) + lines * (len(width) if isinstance(width, str) else width))
        return s

    def _before_join(self, context: Context, value: Any, d: Any = "", attribute: Any = None) -> list[Any]:
        parts = list(value)
        texts = (
            parts if attribute is None else list(map(make_attrgetter(context.environment, attribute), parts))
        )
        self._check_join(str(d), texts)
        return parts

    def _before_list(self, context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        return self.spread(value)

    def _before_replace(self, context: Context, s: Any, old: Any, new: Any, count: int | None = None) -> Any:
        self._check_replace(str(s), str(old), str(new))
        return s

    def _before_round(self, context: Context, value: Any, precision: int = 0, method: str = "common") -> Any:
        if abs(precision) > _MAX_DIGITS:
            raise SecurityError(f"rounding to {precision:,} digits is over the limit of {_MAX_DIGITS:,}")
        return value

    def _before_sum(self, context: Context, value: Any, attribute: Any = None, start: Any = 0) -> Any:
        if not isinstance(start, (int, float)):
            raise SecurityError("sum adds numbers only; use join for text and + for lists")
        return value

    def _check_join(self, separator: str, parts: list[Any]) -> list[Any]:
        self._meter.expect(self._meter.weigh(parts) + len(separator) * len(parts))
        return parts

    def _check_replace(self, text: str, old: str, new: str) -> None:
        self._meter.expect(len(text) + text.count(old) * max(0, len(new) - len(old)))


def widths(text: str) -> int:
    """Sum of all numbers in a format: at least the widths and precisions it asks for."""
    return sum(int(digits) if len(digits) < 10 else MAX_NUMBER**2 for digits in re.findall(r"\d+", text))


def _check_numbers(values: Iterable[Any]) -> None:
    for value in values:
        if isinstance(value, int) and abs(value) > MAX_NUMBER:
            raise SecurityError(f"the number {value:,} is over the limit of {MAX_NUMBER:,} for an argument")
