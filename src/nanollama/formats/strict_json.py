"""JSON of a model folder: bytes in, one object out, or an error that names the file.

Stricter than Python's reader where leniency would hide damage or give two readers two meanings: a key may
occur once in an object, numbers are finite, the text is UTF-8.
"""

import json
from pathlib import Path
from typing import Any, NoReturn

from nanollama.errors import FormatError, ModelNotFoundError

Json = dict[str, Any]

MAX_CONFIG_BYTES = 4 << 20
"""Settings files in use stay under 100 KB; tokenizer_config.json of some models under 1 MB."""

_MAX_DIGITS = 40  # of a whole number; tokenizer_config.json has 10^30 for "no limit"


def parse_object(data: bytes, what: str) -> Json:
    """The JSON object that ``data`` is; errors call it ``what``. FormatError for anything else."""
    try:
        found = json.loads(
            data.decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_constant, parse_int=_whole
        )
    except RecursionError:
        raise FormatError(f"{what} is not valid JSON: it is nested too deeply; fetch it again") from None
    except ValueError as error:  # also undecodable text and JSONDecodeError
        raise FormatError(f"{what} is not valid JSON ({error}); fetch it again") from None
    if not isinstance(found, dict):
        raise FormatError(f"{what} holds {found!r:.60}, but a JSON object is expected")
    return found


def read_object(path: Path, limit: int = MAX_CONFIG_BYTES) -> Json:
    """The JSON object in a file of at most ``limit`` bytes.

    Raises:
        ModelNotFoundError: there is no such file.
        FormatError: it is larger, can't be read or is no JSON object.
    """
    return parse_object(read_bytes(path, limit), path.name)


def read_bytes(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most ``limit`` bytes; errors as in :func:`read_object`."""
    try:
        if not path.is_file():
            if path.exists():
                raise FormatError(f"{path.name} is not a regular file")
            raise ModelNotFoundError(f"there is no file {path}, but the model needs it")
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise FormatError(f"{path.name} cannot be read: {error.strerror}") from None
    if len(data) > limit:
        raise FormatError(f"{path.name} has more than {limit:,} bytes, the most that are read of such a file")
    return data


def _once(pairs: list[tuple[str, Any]]) -> Json:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {key!r:.80} occurs twice")
            seen.add(key)
    return found


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number in JSON")


def _whole(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"a number has {len(text)} digits")
    return int(text)
