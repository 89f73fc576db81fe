"""How a checkpoint folder wants to be sampled: generation_config.json and config.json in, our settings and
the ids that end a generation out.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nanollama.errors import FormatError, UsageError
from nanollama.sampling.params import check

_NAMES = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
}
"""Keys of generation_config.json -> our settings."""

_GREEDY = {"temperature": 0.0, "repeat_penalty": 1.0}


@dataclass(frozen=True, slots=True)
class GenerationSettings:
    """``sampling`` holds only what the file states; ``stop_ids`` are all ids called ``eos_token_id``."""

    sampling: Mapping[str, float] = field(default_factory=dict)
    stop_ids: frozenset[int] = frozenset()


def generation_settings(generation: Mapping[str, Any], config: Mapping[str, Any]) -> GenerationSettings:
    """The settings in ``generation`` (empty without such a file); ``config`` stands in for its missing ids.

    ``do_sample: false`` means greedy, whatever temperature stands beside it; where ``do_sample`` is not
    stated, stated settings count.

    Raises:
        FormatError: a value is of another type or out of range.
    """
    stated = {ours: generation[key] for key, ours in _NAMES.items() if generation.get(key) is not None}
    sampling: dict[str, float] = {}
    for name, value in stated.items():
        try:
            sampling[name] = check(name, value)
        except UsageError as error:
            raise FormatError(f"generation_config.json: {error}") from None
    sample = generation.get("do_sample")
    if sample is not None and not isinstance(sample, bool):
        raise FormatError(f"do_sample in generation_config.json is {sample!r:.60}; expected true or false")
    if sample is False:
        penalty = sampling.get("repeat_penalty", 1.0)
        sampling = {**_GREEDY, "repeat_penalty": penalty}
    return GenerationSettings(sampling, _ids(generation) or _ids(config))


def _ids(values: Mapping[str, Any]) -> frozenset[int]:
    """``eos_token_id``: one id, a list of them, or nothing."""
    found = values.get("eos_token_id")
    ids = found if isinstance(found, list) else [] if found is None else [found]
    if any(type(number) is not int for number in ids):
        raise FormatError(f"eos_token_id is {found!r:.60}; expected a token id or a list of them")
    return frozenset(ids)
