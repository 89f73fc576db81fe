"""Times as Ollama writes them: seconds or Go durations in, seconds out; clocks in, RFC 3339 out."""

import re
from datetime import UTC, datetime, timedelta

from nanollama.server.jobs import Keep

_DURATION = re.compile(r"(?P<sign>[+-]?)(?P<parts>(?:[0-9]*\.?[0-9]+(?:ns|us|µs|ms|s|m|h))+)")
_PART = re.compile(r"(?P<number>[0-9]*\.?[0-9]+)(?P<unit>ns|us|µs|ms|s|m|h)")
_NUMBER = re.compile(r"[+-]?[0-9]{1,18}(\.[0-9]{1,9})?", re.ASCII)
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_MAX_CHARS = 64

FOREVER_S = 20 * 365 * 86400.0
"""What is longer than this is for ever, for us as for Ollama's ``ps``."""

NANOSECOND = 1e-9


def read_keep(value: object) -> Keep:
    """A ``keep_alive``: a number of seconds, or a text such as ``5m`` or ``1h30m``; below zero is for ever.

    Raises:
        ValueError: it is something else.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("neither a number nor a text")
    seconds = _seconds(value) if isinstance(value, str) else float(value)
    return Keep(None if seconds < 0 or seconds > FOREVER_S else seconds)


def _seconds(text: str) -> float:
    if len(text) <= _MAX_CHARS and _NUMBER.fullmatch(text):
        return float(text)
    found = _DURATION.fullmatch(text) if len(text) <= _MAX_CHARS else None
    if found is None:
        raise ValueError("not a duration")
    total = sum(float(part["number"]) * _SECONDS[part["unit"]] for part in _PART.finditer(found["parts"]))
    return -total if found["sign"] == "-" else total


def nanoseconds(seconds: float) -> int:
    return round(seconds / NANOSECOND)


def now_text() -> str:
    """This moment, as Ollama stamps its objects."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def moment_text(since_1970: float) -> str:
    """A time of a file. Whatever the file system says, the text is a date."""
    bounded = min(max(since_1970, 0.0), 253_402_214_400.0)
    return datetime.fromtimestamp(bounded, UTC).isoformat(timespec="microseconds")


def expiry_text(seconds: float | None) -> str:
    """When a model goes that stays for so long; for ever is far away, as Ollama has it."""
    ahead = timedelta(days=292 * 365) if seconds is None else timedelta(seconds=max(0.0, seconds))
    return (datetime.now(UTC) + ahead).isoformat(timespec="microseconds")
