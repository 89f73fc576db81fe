"""Variables that set what ``serve`` does: the environment in, settings out, under our names and Ollama's.

A flag comes before a variable, and ours before Ollama's. A variable that is set to nothing is not set.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nanollama.client import OLLAMA_PORT
from nanollama.errors import UsageError

_WHOLE = re.compile(r"[0-9]{1,9}", re.ASCII)
_NUMBER = re.compile(r"-?[0-9]{1,9}(\.[0-9]+)?", re.ASCII)
_PARTS = re.compile(r"-?([0-9]{1,9}(\.[0-9]+)?(ms|s|m|h))+", re.ASCII)
_PART = re.compile(r"([0-9.]+)(ms|s|m|h)", re.ASCII)
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_ADDRESS = re.compile(
    r"(?:(?P<scheme>https?)://)?(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]*)(?::(?P<port>[0-9]{1,5}))?/?",
    re.ASCII,
)

Settings = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Variable:
    """One setting of the environment. ``read`` turns the text into settings, or raises ``ValueError``."""

    name: str
    ollama: str
    sets: str
    form: str
    read: Callable[[str], Settings]


def address(text: str) -> Settings:
    """``host``, ``host:port``, ``:port`` or ``http://host:port``."""
    found = _ADDRESS.fullmatch(text)
    if found is None or found["scheme"] == "https" or int(found["port"] or 0) > 65535:
        raise ValueError
    settings: Settings = {"host": found["host"].strip("[]")} if found["host"] else {}
    return {**settings, "port": int(found["port"])} if found["port"] else settings


def whole(setting: str, low: int = 0, *, unset: int | None = None) -> Callable[[str], Settings]:
    """A whole number of at least ``low``; ``unset`` leaves the setting as it is."""

    def read(text: str) -> Settings:
        if not _WHOLE.fullmatch(text):
            raise ValueError
        number = int(text)
        if number == unset:
            return {}
        if number < low:
            raise ValueError
        return {setting: number}

    return read


def keep_alive(text: str) -> Settings:
    """Seconds, or a time such as ``5m``; below zero, or ``forever``, is for ever."""
    if text == "forever":
        return {"keep_alive_s": None}
    if _NUMBER.fullmatch(text):
        seconds = float(text)
    elif _PARTS.fullmatch(text):
        seconds = sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(text))
        seconds = -seconds if text.startswith("-") else seconds
    else:
        raise ValueError
    return {"keep_alive_s": None if seconds < 0 else seconds}


def listed(setting: str) -> Callable[[str], Settings]:
    return lambda text: {setting: tuple(each.strip() for each in text.split(",") if each.strip())}


VARIABLES: tuple[Variable, ...] = (
    Variable("NANOLLAMA_HOST", "OLLAMA_HOST", "--host, --port", "an address such as 0.0.0.0:8000", address),
    Variable("NANOLLAMA_KEEP_ALIVE", "OLLAMA_KEEP_ALIVE", "--keep-alive", "a time such as 5m", keep_alive),
    Variable(
        "NANOLLAMA_ORIGINS",
        "OLLAMA_ORIGINS",
        "--allow-origin",
        "origins with commas between them",
        listed("origins"),
    ),
    Variable(
        "NANOLLAMA_CONTEXT_LENGTH",
        "OLLAMA_CONTEXT_LENGTH",
        "--ctx",
        "a whole number of at least 8, or 0 for the model's",
        whole("n_ctx", 8, unset=0),
    ),
    Variable(
        "NANOLLAMA_NUM_PARALLEL",
        "OLLAMA_NUM_PARALLEL",
        "--max-seqs",
        "a whole number, 0 for the default",
        whole("max_seqs", 1, unset=0),
    ),
    Variable(
        "NANOLLAMA_MAX_LOADED_MODELS",
        "OLLAMA_MAX_LOADED_MODELS",
        "--max-models",
        "a whole number, 0 for the default",
        whole("max_models", 1, unset=0),
    ),
    Variable("NANOLLAMA_MAX_QUEUE", "OLLAMA_MAX_QUEUE", "--max-queue", "a whole number", whole("max_queue")),
)


ELSEWHERE: Mapping[str, str] = {
    "NANOLLAMA_MODELS": "the folder of nanollama's models, for all commands",
    "NANOLLAMA_API_KEY": "a key that `serve` asks for, and that `run --server`, `ps` and `stop` send",
    "OLLAMA_MODELS": "where `import ollama` looks for Ollama's models; nothing is ever written there",
    "OLLAMA_NOHISTORY": "`1`: a session keeps no history of what was typed; so does `NANOLLAMA_NOHISTORY`",
    "HF_TOKEN": "sent to the hub only; `HF_ENDPOINT`, `HF_HUB_OFFLINE`, `HF_HUB_CACHE` and those "
    "of proxies mean what they mean to Hugging Face's own tools",
}
"""Variables that other commands read too -> what they are for."""

WITHOUT_EFFECT: Mapping[str, str] = {
    "OLLAMA_DEBUG": "there is no log of that kind",
    "OLLAMA_FLASH_ATTENTION": "attention never holds all scores at once",
    "OLLAMA_GPU_OVERHEAD": "`--ctx` and `--max-models` bound the memory",
    "OLLAMA_KV_CACHE_TYPE": "the cache has one type",
    "OLLAMA_LLM_LIBRARY": "`--backend` chooses what computes",
    "OLLAMA_LOAD_TIMEOUT": "loading has no limit of time",
    "OLLAMA_MULTIUSER_CACHE": "equal beginnings of prompts are always shared",
    "OLLAMA_NOPRUNE": "nothing is deleted at the start",
    "OLLAMA_SCHED_SPREAD": "a model lies on one device",
}
"""Ollama's variables that do nothing here -> why."""


def from_environment(environ: Mapping[str, str]) -> Settings:
    """What the environment sets, named as in ``ServerSettings``, and ``n_ctx``. Raises ``UsageError``."""
    settings: Settings = {}
    for variable in VARIABLES:
        for name in (variable.name, variable.ollama):
            text = environ.get(name, "").strip().strip("\"'")
            if not text:
                continue
            try:
                found = variable.read(text)
            except ValueError:
                raise UsageError(f"the variable {name} is {text!r:.80}; expected {variable.form}") from None
            if name == "OLLAMA_HOST":
                found = {"port": OLLAMA_PORT, **found}
            settings.update(found)
            break
    return settings
