"""The bytes of a request in, a JSON object that is safe to look at out.

What passes has no NaN or infinity, no duplicate key, no lone surrogate and at most 64 levels. Everything else
is refused with a sentence.
"""

import json
import math
import re
from collections import Counter
from typing import Any, NoReturn

from nanollama.server.problems import JSON, Problem, invalid

MAX_DEPTH = 64
_SURROGATE = re.compile("[\ud800-\udfff]")


def parse_object(body: bytes) -> JSON:
    """The JSON object that ``body`` spells in UTF-8. Raises ``Problem``."""
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        raise _bad("is not UTF-8") from None
    if text.startswith("\ufeff"):
        raise _bad("begins with a byte order mark; leave it out")
    try:
        value = json.loads(text, parse_constant=_constant, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        raise _bad(f"is not valid JSON (line {error.lineno}, column {error.colno})") from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError:  # int() refuses thousands of digits
        raise _bad("has a number with too many digits") from None
    if not isinstance(value, dict):
        raise _bad("is not a JSON object")
    _check(value)
    return value


def _check(value: JSON) -> None:
    """Walk all values, without recursion: the depth is what is to be checked."""
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below.extend(item)
                below.extend(item.values())
            elif isinstance(item, list):
                below.extend(item)
            elif isinstance(item, str):
                if not item.isascii() and _SURROGATE.search(item):
                    raise _bad("has half of a surrogate pair, which is no character")
            elif isinstance(item, float) and not math.isfinite(item):
                raise _bad("has a number that is too large")
        if not below:
            return
        level = below
    raise _too_deep()


def _object(pairs: list[tuple[str, Any]]) -> JSON:
    made = dict(pairs)
    if len(made) != len(pairs):
        counts = Counter(name for name, _ in pairs)
        raise _bad(f"gives {shown(counts.most_common(1)[0][0])} twice in one object")
    return made


def _constant(name: str) -> NoReturn:
    raise _bad(f"has {name}, which is not a JSON number")


def _bad(what: str) -> Problem:
    return invalid(f"The request body {what}.", code="invalid_json")


def _too_deep() -> Problem:
    return _bad(f"is nested more than {MAX_DEPTH} levels deep")


def shown(text: str) -> str:
    """A piece of a request as it may be quoted back: short, on one line, in printable ASCII."""
    return ascii(text if len(text) <= 60 else text[:60] + "...")
