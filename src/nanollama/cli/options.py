"""What can be set, in one table: text from a flag or from ``/set`` in, the keyword arguments of ``LLM`` out.

A setting is checked where it is typed, with a sentence that names its range. Only what was given is passed
on, so that a model's own settings apply otherwise.
"""

import argparse
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

from nanollama.errors import UsageError
from nanollama.inputs import MAX_STOP_CHARS, MAX_STOPS
from nanollama.quant.plan import AT_LOAD
from nanollama.sampling.params import DEFAULTS, SETTINGS
from nanollama.types import BACKENDS, DEVICES, DTYPES, ContextPolicy

MAX_INT = 2**31

_INTEGER = re.compile(r"[+-]?[0-9]{1,20}", re.ASCII)


class Expected(Exception):
    """A value was not of the form or in the range that the message describes."""


def whole(text: str, low: int = 0, high: int = MAX_INT) -> int:
    """``text`` as an integer in ``[low, high]``."""
    number = int(text) if _INTEGER.fullmatch(text) else None
    if number is None or not low <= number <= high:
        raise Expected(
            f"a whole number of at least {low}" + (f" and at most {high}" if high != MAX_INT else "")
        )
    return number


def real(text: str, low: float, high: float) -> float:
    """``text`` as a number in ``[low, high]``."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not low <= number <= high:  # false for NaN, whatever the range
        raise Expected(f"a number from {low:g} to {high:g}")
    return number


def stop_string(text: str) -> tuple[str, ...]:
    if not 0 < len(text) <= MAX_STOP_CHARS:
        raise Expected(f"a text of 1 to {MAX_STOP_CHARS} characters")
    return (text,)


def token_bias(text: str) -> dict[int, float]:
    """``ID=VALUE``: the amount added to the logit of one token; ``-inf`` bans it."""
    token, equals, value = text.partition("=")
    try:
        if equals and value != "inf":
            return {whole(token): -math.inf if value == "-inf" else real(value, -1e6, 1e6)}
    except Expected:
        pass
    raise Expected("ID=VALUE, a token id and a number or -inf, such as 13=-5")


def choice(text: str, choices: tuple[str, ...]) -> str:
    if text not in choices:
        raise Expected("one of " + ", ".join(choices))
    return text


@dataclass(frozen=True, slots=True)
class Setting:
    """One thing that ``LLM`` or ``LLM.events`` can be told: its keyword, its flags and how its text is read.

    A switch is on where its flag is given, without a text.
    """

    name: str
    flags: tuple[str, ...]
    metavar: str
    help: str
    parse: Callable[[str], Any]
    is_switch: bool = False

    def read(self, text: str, label: str | None = None) -> Any:
        """The value of ``text``. Raises ``UsageError``, which calls the setting ``label``."""
        try:
            return self.parse(text)
        except Expected as expected:
            shown = text if len(text) <= 60 else text[:60] + "…"
            raise UsageError(f"{label or self.name} must be {expected}, not {shown!r}") from None


def sampling_setting(name: str) -> Setting:
    """The row of ``sampling.params`` called ``name``, with its flag."""
    row = SETTINGS[name]
    flags = ("--" + name.replace("_", "-"), *(("--temp",) if name == "temperature" else ()))
    default = f" ({DEFAULTS[name]:g})" if name in DEFAULTS else ""
    parse: Callable[[str], int | float]
    if row.kind is int:
        parse = partial(whole, low=int(row.minimum), high=int(row.maximum))
    else:
        parse = partial(real, low=row.minimum, high=row.maximum)
    return Setting(name, flags, "N" if row.kind is int else "X", row.help + default, parse)


GENERATION = (
    Setting("max_tokens", ("--max-tokens",), "N", "stop after N tokens", partial(whole, low=1)),
    *map(sampling_setting, SETTINGS),
    Setting(
        "logit_bias",
        ("--logit-bias",),
        "ID=X",
        "add X to the logit of one token, -inf bans it; can be repeated",
        token_bias,
    ),
    Setting("stop", ("--stop",), "TEXT", "end the answer before TEXT; can be repeated", stop_string),
    Setting(
        "context_policy",
        ("--context-policy",),
        "POLICY",
        "for a conversation that outgrows the context: drop_oldest turns and say so, or error (drop_oldest)",
        partial(choice, choices=get_args(ContextPolicy)),
    ),
)
"""Everything that can differ from one answer to the next."""

LOADING = (
    Setting(
        "backend",
        ("--backend",),
        "BACKEND",
        "auto, native (CPU kernels) or torch (auto: the fastest)",
        partial(choice, choices=BACKENDS),
    ),
    Setting(
        "threads",
        ("--threads",),
        "N",
        "CPU threads (as many as physical cores)",
        partial(whole, low=1, high=1024),
    ),
    Setting(
        "device", ("--device",), "DEVICE", "auto, cpu, cuda or mps (auto)", partial(choice, choices=DEVICES)
    ),
    Setting(
        "dtype",
        ("--dtype",),
        "DTYPE",
        "compute in float32, float16 or bfloat16 (the device's best)",
        partial(choice, choices=DTYPES),
    ),
    Setting(
        "quantize",
        ("--quantize",),
        "WIDTH",
        "quantize wider matrices to q8 or q4 while loading",
        partial(choice, choices=tuple(AT_LOAD)),
    ),
    Setting(
        "compile",
        ("--compile",),
        "",
        "compile the model with torch.compile: slow to begin, faster then",
        bool,
        is_switch=True,
    ),
)
CONTEXT = Setting(
    "n_ctx", ("--ctx", "--n-ctx"), "N", "context window in tokens (the model's)", partial(whole, low=8)
)

_REPEATABLE = ("logit_bias", "stop")


def add_settings(parser: argparse._ActionsContainer, settings: tuple[Setting, ...]) -> None:
    """Give ``parser`` the flags of ``settings``; what is not given is ``None``."""
    for setting in settings:
        if setting.is_switch:
            parser.add_argument(
                *setting.flags, dest=setting.name, help=setting.help, action="store_true", default=None
            )
            continue
        parser.add_argument(
            *setting.flags,
            dest=setting.name,
            metavar=setting.metavar,
            help=setting.help,
            type=partial(setting.read, label=setting.flags[0]),
            action="append" if setting.name in _REPEATABLE else "store",
        )


def given(args: argparse.Namespace, settings: tuple[Setting, ...]) -> dict[str, Any]:
    """The settings that were given, as keyword arguments."""
    values = {setting.name: getattr(args, setting.name) for setting in settings}
    for name in _REPEATABLE:
        if values.get(name):
            values[name] = merged(values[name])
    if len(values.get("stop") or ()) > MAX_STOPS:
        raise UsageError(f"--stop can be given {MAX_STOPS} times at most, not {len(values['stop'])} times")
    return {name: value for name, value in values.items() if value is not None}


def merged(values: list[Any]) -> Any:
    """The values of a flag given several times, as one."""
    first = values[0]
    if isinstance(first, Mapping):
        return {key: value for each in values for key, value in each.items()}
    return tuple(text for each in values for text in each)
