"""Settings to SamplingParams: what the request says, else what the model says, else the defaults.

Each setting has one row in a table: its range and the value that switches it off. A name outside the table, a
wrong type or a number out of range is refused with a sentence; nothing is clamped or ignored.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nanollama.errors import UsageError
from nanollama.types import SamplingParams


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting at the edge: its type, its range (ends included), and its "off" value if it has one."""

    kind: type[int] | type[float]
    minimum: float
    maximum: float
    off: float | None = None
    help: str = ""


SETTINGS: dict[str, Setting] = {
    "temperature": Setting(float, 0.0, 100.0, help="randomness; 0 always takes the most likely token"),
    "top_k": Setting(int, 0, 1 << 31, off=0, help="keep the K most likely tokens; 0 keeps all"),
    "top_p": Setting(
        float, 0.0, 1.0, off=1.0, help="keep the likeliest tokens that make up P; 1.0 keeps all"
    ),
    "min_p": Setting(
        float, 0.0, 1.0, off=0.0, help="drop tokens less likely than P times the best; 0 keeps all"
    ),
    "repeat_penalty": Setting(
        float, 0.01, 100.0, off=1.0, help="make repeated tokens less likely; 1.0 is off"
    ),
    "repeat_last_n": Setting(int, -1, 1 << 31, off=-1, help="tokens the penalties look back on; -1 for all"),
    "presence_penalty": Setting(
        float, -100.0, 100.0, off=0.0, help="subtracted once from tokens seen; 0 is off"
    ),
    "frequency_penalty": Setting(
        float, -100.0, 100.0, off=0.0, help="subtracted for each time a token was seen; 0 is off"
    ),
    "seed": Setting(int, -(1 << 63), (1 << 64) - 1, help="same seed, same text; a fresh one if not given"),
}

DEFAULTS: dict[str, float] = {
    "temperature": 0.8,
    "top_k": 50,
    "top_p": 0.9,
    "repeat_penalty": 1.1,
    "repeat_last_n": 64,
}

GGUF_KEYS = {
    "general.sampling.temp": "temperature",
    "general.sampling.top_k": "top_k",
    "general.sampling.top_p": "top_p",
    "general.sampling.min_p": "min_p",
    "general.sampling.penalty_repeat": "repeat_penalty",
    "general.sampling.penalty_last_n": "repeat_last_n",
}
"""Keys of a GGUF file -> our settings."""


def model_settings(metadata: Mapping[str, Any]) -> dict[str, float]:
    """The sampling settings a GGUF file recommends for its model, under our names."""
    return {name: metadata[key] for key, name in GGUF_KEYS.items() if key in metadata}


def sampling_params(
    given: Mapping[str, Any], model: Mapping[str, float], *, vocab_size: int
) -> SamplingParams:
    """Resolve settings: what is ``given`` and not None wins over the model's, which wins over DEFAULTS.

    Raises:
        UsageError: an unknown name, a wrong type, or a number out of range.
    """
    stated = {name: value for name, value in given.items() if value is not None}
    bias = _logit_bias(stated.pop("logit_bias", {}), vocab_size)
    if unknown := sorted(set(stated) - set(SETTINGS)):
        raise UsageError(
            f"unknown sampling setting {unknown[0]!r}; known are {', '.join(SETTINGS)}, logit_bias"
        )
    merged = {**DEFAULTS, **model, **stated}
    values = {name: check(name, value) for name, value in merged.items()}
    if values.get("top_p") == 0.0:
        values["top_k"] = 1  # a nucleus of nothing still holds the most likely token
    active: dict[str, Any] = {
        name: None if SETTINGS[name].off is not None and value == SETTINGS[name].off else value
        for name, value in values.items()
    }
    return SamplingParams(logit_bias=bias, **active)


def check(name: str, value: Any) -> float:
    """``value`` as the number that the setting ``name`` takes.

    Raises:
        UsageError: not a number of the right kind, or out of range.
    """
    setting = SETTINGS[name]
    if setting.kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    right = isinstance(value, int | float) if setting.kind is float else isinstance(value, int)
    if isinstance(value, bool) or not right or not setting.minimum <= value <= setting.maximum:
        kind = "a whole number" if setting.kind is int else "a number"
        raise UsageError(
            f"{name} is {value!r}; expected {kind} from {setting.minimum:g} to {setting.maximum:g}"
        )
    return setting.kind(value)


def _logit_bias(bias: object, vocab_size: int) -> dict[int, float]:
    if not isinstance(bias, Mapping):
        raise UsageError(f"logit_bias is {bias!r}; expected a mapping from token id to number")
    for token_id, value in bias.items():
        if isinstance(token_id, bool) or not isinstance(token_id, int) or not 0 <= token_id < vocab_size:
            raise UsageError(
                f"logit_bias names token {token_id!r}; expected an id from 0 to {vocab_size - 1}"
            )
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or math.isnan(value)
            or value == math.inf
        ):
            raise UsageError(f"logit_bias for token {token_id} is {value!r}; expected a number or -inf")
    return {int(k): float(v) for k, v in bias.items()}
