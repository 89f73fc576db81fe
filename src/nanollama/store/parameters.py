"""Every parameter of Ollama in one table: a name and a value in, the checked value and our settings out.

A parameter is mapped to one of our settings, harmless here for the reason that stands in its row, or refused.
What the mapped ones may be is the same as on the command line; a test compares the ranges.
"""

import math
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal

from nanollama.errors import UsageError
from nanollama.store.recipe import ParameterValue

Kind = Literal["int", "float", "bool", "texts"]

MAX_INT = 1 << 31
MAX_STOPS = 16
MAX_STOP_CHARS = 256


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter: its type and range (ends included), Ollama's default, and what it is here.

    ``setting`` is the keyword of ``LLM`` or ``LLM.start`` that it sets, ``None`` where it sets nothing, for
    the reason ``why``. ``unset`` are values that leave the setting as it is.
    """

    kind: Kind
    minimum: float = -math.inf
    maximum: float = math.inf
    default: ParameterValue | None = None
    setting: str | None = None
    unset: tuple[int, ...] = ()
    why: str = ""


@dataclass(frozen=True, slots=True)
class Settings:
    """What parameters stand for, under our names; ``None`` and empty leave a setting as it is.

    ``sampling`` are keywords of ``LLM.start``; ``n_ctx``, ``threads`` and ``device`` are fixed when a model
    is loaded.
    """

    sampling: Mapping[str, float] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    max_tokens: int | None = None
    n_ctx: int | None = None
    threads: int | None = None
    device: str | None = None


PARAMETERS: dict[str, Parameter] = {
    "temperature": Parameter("float", 0.0, 100.0, 0.8, "temperature"),
    "top_k": Parameter("int", 0, MAX_INT, 40, "top_k"),
    "top_p": Parameter("float", 0.0, 1.0, 0.9, "top_p"),
    "min_p": Parameter("float", 0.0, 1.0, 0.0, "min_p"),
    "typical_p": Parameter("float", 1.0, 1.0, 1.0, why="1.0 is off, and there is no typical sampling"),
    "repeat_last_n": Parameter("int", -1, MAX_INT, 64, "repeat_last_n"),
    "repeat_penalty": Parameter("float", 0.01, 100.0, 1.0, "repeat_penalty"),
    "presence_penalty": Parameter("float", -100.0, 100.0, 0.0, "presence_penalty"),
    "frequency_penalty": Parameter("float", -100.0, 100.0, 0.0, "frequency_penalty"),
    "seed": Parameter("int", -(1 << 63), (1 << 64) - 1, -1, "seed", unset=(-1,)),
    "stop": Parameter("texts", default=(), setting="stop"),
    "num_predict": Parameter("int", -2, MAX_INT, -1, "max_tokens", unset=(-2, -1, 0)),
    "num_ctx": Parameter("int", 8, MAX_INT, None, "n_ctx"),
    "num_thread": Parameter("int", 0, 1024, 0, "threads", unset=(0,)),
    "num_keep": Parameter(
        "int", -1, MAX_INT, 4, why="the system prompt is kept whole when the oldest turns are dropped"
    ),
    "num_batch": Parameter("int", 1, MAX_INT, 512, why="the size of a step follows from the work there is"),
    "num_gpu": Parameter(
        "int", -1, MAX_INT, -1, "device", why="0 is the CPU; else a model runs as a whole on its device"
    ),
    "main_gpu": Parameter("int", 0, MAX_INT, None, why="the device is chosen with --device"),
    "use_mmap": Parameter("bool", default=None, why="model files are always mapped"),
    "draft_num_predict": Parameter("int", 0, MAX_INT, 4, why="no draft model is used, so nothing is drafted"),
}
"""Ollama's name -> what it is here. Source: ``DefaultOptions`` in Ollama's ``api/types.go``."""

DEPRECATED = frozenset(
    {"penalize_newline", "low_vram", "f16_kv", "logits_all", "vocab_only", "use_mlock"}
    | {"mirostat", "mirostat_tau", "mirostat_eta"}
)
"""What Ollama once had: it is accepted with a warning and left out."""

_INTEGER = re.compile(r"[+-]?[0-9]{1,20}", re.ASCII)
_TRUTHS = {
    **dict.fromkeys(("1", "t", "T", "TRUE", "true", "True"), True),
    **dict.fromkeys(("0", "f", "F", "FALSE", "false", "False"), False),
}


def read_parameter(name: str, text: str) -> ParameterValue:
    """The value that ``text`` spells for the parameter ``name``; where it can repeat, a tuple of one.

    Raises:
        UsageError: there is no such parameter, or it takes no such value.
    """
    kind = _row(name).kind
    value: object = text
    if kind == "int" and _INTEGER.fullmatch(text):
        value = int(text)
    elif kind == "float":
        with suppress(ValueError):  # what is no number is refused as text
            value = float(text)
    elif kind == "bool":
        value = _TRUTHS.get(text, text)
    return check_parameter(name, value)


def check_parameter(name: str, value: object) -> ParameterValue:
    """``value``, of the type that the parameter ``name`` has.

    Raises:
        UsageError: there is no such parameter, or it takes no such value.
    """
    row = _row(name)
    if row.kind == "texts":
        return _texts(name, value)
    if row.kind == "bool":
        if not isinstance(value, bool):
            raise UsageError(f"{name} is {value!r:.80}; expected true or false")
        return value
    number = value
    if row.kind == "int" and isinstance(value, float) and value.is_integer():
        number = int(value)
    kinds = int if row.kind == "int" else int | float
    if isinstance(number, bool) or not isinstance(number, kinds) or not row.minimum <= number <= row.maximum:
        raise UsageError(f"{name} is {value!r:.80}; expected {expected(row)}")
    return number if row.kind == "int" else float(number)


def expected(row: Parameter) -> str:
    """What a parameter takes, in words."""
    if row.kind in ("bool", "texts"):
        return "true or false" if row.kind == "bool" else "a text"
    kind = "a whole number" if row.kind == "int" else "a number"
    if row.minimum == row.maximum:
        return f"{row.minimum:g}, since {row.why}"
    low, high = (str(each) if row.kind == "int" else f"{each:g}" for each in (row.minimum, row.maximum))
    return f"{kind} of at least {low}" if row.maximum == MAX_INT else f"{kind} from {low} to {high}"


def settings_of(parameters: Mapping[str, ParameterValue]) -> Settings:
    """What ``parameters`` stand for, without what is harmless here and what leaves a setting as it is.

    Raises:
        UsageError: there is no such parameter, or it takes no such value.
    """
    values: dict[str, Any] = {}
    for name, given in parameters.items():
        row, value = _row(name), check_parameter(name, given)
        if row.setting is not None and value not in row.unset:
            values[row.setting] = value
    if values.pop("device", None) == 0:
        values["device"] = "cpu"
    others = {
        name: values.pop(name)
        for name in ("stop", "max_tokens", "n_ctx", "threads", "device")
        if name in values
    }
    return Settings(sampling=values, **others)


def _row(name: str) -> Parameter:
    if name in PARAMETERS:
        return PARAMETERS[name]
    close = get_close_matches(name.lower()[:60], PARAMETERS, n=1)
    hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(PARAMETERS)}"
    raise UsageError(f"unknown parameter {name!r:.80}: {hint}")


def _texts(name: str, value: object) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or len(texts) > MAX_STOPS:
        raise UsageError(f"{name} is {value!r:.80}; expected a text, or up to {MAX_STOPS} of them")
    for text in texts:
        if not isinstance(text, str) or not 0 < len(text) <= MAX_STOP_CHARS:
            raise UsageError(f"{name} is {text!r:.80}; expected a text of 1 to {MAX_STOP_CHARS} characters")
    return tuple(texts)
