"""nanollama: large language models on the machine in front of you, in Python that can be read.

``LLM`` is the way in. ``docs/tour.md`` follows one request through the package.
"""

from typing import TYPE_CHECKING, Any

from nanollama.errors import NanollamaError

if TYPE_CHECKING:
    from nanollama.llm import LLM
    from nanollama.types import Completion, Message, SamplingParams, TextEvent, Timings

__version__ = "0.1.0"
__all__ = [
    "LLM",
    "Completion",
    "Message",
    "NanollamaError",
    "SamplingParams",
    "TextEvent",
    "Timings",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """Import what is asked for only then, so that ``import nanollama`` stays instant."""
    if name == "LLM":
        from nanollama.llm import LLM

        return LLM
    if name in __all__:
        from nanollama import types

        return getattr(types, name)
    raise AttributeError(f"module 'nanollama' has no attribute {name!r}")
