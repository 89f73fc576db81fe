"""Fields of OpenAI's requests that do nothing here: those that are ignored, and those that are refused.

Each has its reason, which clients and the reference page are told. The rest is in `fields.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Refused:
    """A field that can't be honoured, and the values of it that change nothing."""

    why: str
    harmless: tuple[Any, ...] = ()

    def lets_through(self, value: object) -> bool:
        """Whether ``value`` changes nothing. ``True`` is not 1."""
        return value is None or any(
            type(value) is type(harmless) and value == harmless for harmless in self.harmless
        )


IGNORED: Mapping[str, str] = {
    "metadata": "labels for OpenAI's dashboard",
    "parallel_tool_calls": "without tools there is nothing to call",
    "prediction": "makes OpenAI's servers faster; the answer is the same",
    "prompt_cache_key": "equal beginnings of prompts are found without it",
    "prompt_cache_options": "equal beginnings of prompts are found without it",
    "prompt_cache_retention": "how long they are kept depends on the memory at hand",
    "safety_identifier": "names the end user to OpenAI",
    "service_tier": "there is one tier",
    "user": "names the end user to OpenAI",
}

_NO_TOOLS = "tool calls are not supported"
REFUSED_CHAT: Mapping[str, Refused] = {
    "audio": Refused("only text is generated"),
    "function_call": Refused(_NO_TOOLS, ("none", "auto")),
    "functions": Refused(_NO_TOOLS, ([],)),
    "modalities": Refused("only text is generated", (["text"],)),
    "moderation": Refused("there is no moderation"),
    "reasoning_effort": Refused("the effort of reasoning can't be set", ("none",)),
    "response_format": Refused("the form of an answer can't be enforced", ({"type": "text"},)),
    "store": Refused("no answers are stored", (False,)),
    "tool_choice": Refused(_NO_TOOLS, ("none", "auto")),
    "tools": Refused(_NO_TOOLS, ([],)),
    "verbosity": Refused("the length of an answer can't be steered", ("medium",)),
    "web_search_options": Refused("there is no web search"),
}
REFUSED_COMPLETION: Mapping[str, Refused] = {
    "best_of": Refused("there is no choice among hidden answers; n returns them all", (1,)),
    "suffix": Refused("text can't be inserted before a suffix", ("",)),
}
