"""``options`` of a request: Ollama's names in, our settings out; each name is mapped, ignored or refused.

The names that set something are those of a Modelfile (``store/parameters.py``), with the same ranges. Below
the request and the model's own settings stand Ollama's defaults instead of ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nanollama.errors import UsageError
from nanollama.sampling.params import SETTINGS
from nanollama.server.body import shown
from nanollama.server.problems import invalid
from nanollama.server.tables import brief, did_you_mean
from nanollama.server.unsupported import Refused
from nanollama.store.parameters import PARAMETERS, check_parameter, settings_of
from nanollama.store.recipe import ParameterValue

MAX_OPTIONS = 64

IGNORED_OPTIONS: Mapping[str, str] = {
    **{name: row.why for name, row in PARAMETERS.items() if row.setting is None and name != "typical_p"},
    "num_gpu": "a model runs as a whole on the device that the server was started with",
    "num_thread": "the threads are shared by all requests; nanollama serve --threads sets them",
    "numa": "it is for the operator of a machine, and changes no answer",
    "low_vram": "Ollama ignores it as well",
    "f16_kv": "Ollama ignores it as well",
    "logits_all": "Ollama ignores it as well",
    "vocab_only": "Ollama ignores it as well",
    "use_mlock": "Ollama ignores it as well",
    "embedding_only": "Ollama ignores it as well",
    "penalize_newline": "Ollama ignores it as well",
    "mirostat_tau": "it means nothing without mirostat",
    "mirostat_eta": "it means nothing without mirostat",
}
"""Option -> why nothing depends on it."""

REFUSED_OPTIONS: Mapping[str, Refused] = {
    "mirostat": Refused("there is no mirostat sampling", (0,)),
    "tfs_z": Refused("there is no tail-free sampling", (1, 1.0)),
    "typical_p": Refused("there is no typical sampling", (1, 1.0)),
}
SUPPORTED_OPTIONS = tuple(
    name for name, row in PARAMETERS.items() if row.setting is not None and name not in IGNORED_OPTIONS
)

OLLAMA_DEFAULTS: Mapping[str, ParameterValue] = {
    row.setting: row.default
    for row in PARAMETERS.values()
    if row.setting in SETTINGS and row.default is not None and row.default not in row.unset
}
"""Our sampling setting -> what Ollama takes where neither the request nor the model says anything."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the options of one request set. ``sampling`` holds what was given of it."""

    sampling: Mapping[str, Any] = field(default_factory=dict)
    max_tokens: int | None = None
    n_ctx: int | None = None
    stop: tuple[str, ...] = ()

    def sampling_over(self, own: Mapping[str, float]) -> dict[str, Any]:
        """All sampling settings that a request states, where ``own`` are those of the model."""
        return {**{k: v for k, v in OLLAMA_DEFAULTS.items() if k not in own}, **self.sampling}


def read_options(value: object) -> Options:
    """The checked options. Raises ``Problem``, which names the option."""
    if not isinstance(value, Mapping):
        raise invalid(f"options is {brief(value)}; expected an object.", "options", "invalid_value")
    if len(value) > MAX_OPTIONS:
        raise invalid(f"options has {len(value)} entries; at most {MAX_OPTIONS} are allowed.", "options")
    kept: dict[str, ParameterValue] = {}
    for name, given in value.items():
        if given is None or name in IGNORED_OPTIONS:
            continue
        where = f"options.{name[:60]}"
        if refused := REFUSED_OPTIONS.get(name):
            if not refused.lets_through(given):
                raise invalid(
                    f"Unsupported option: {name} can't be honoured, because {refused.why}.",
                    where,
                    "unsupported_parameter",
                )
        elif name not in SUPPORTED_OPTIONS:
            hint = did_you_mean(name, [*SUPPORTED_OPTIONS, *REFUSED_OPTIONS])
            raise invalid(f"Unknown option: {shown(name)}.{hint}", where, "unknown_parameter")
        else:
            kept[name] = _checked(name, given, where)
    settings = settings_of(kept)
    return Options(settings.sampling, settings.max_tokens, settings.n_ctx, settings.stop)


def _checked(name: str, given: object, where: str) -> ParameterValue:
    try:
        return check_parameter(name, given)
    except UsageError as error:
        raise invalid(f"Option {error}.", where, "invalid_value") from None
