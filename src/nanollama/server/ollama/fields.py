"""Every field of Ollama's requests in one table: JSON in, a checked request or a refusal by name out.

``docs/reference/ollama.md`` and the OpenAPI page are made from this table.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, PlainValidator, WithJsonSchema

from nanollama.server.fields import TokenId, TopLogprobs, WantsLogprobs
from nanollama.server.jobs import Keep
from nanollama.server.ollama.durations import read_keep
from nanollama.server.ollama.messages import MESSAGES_SCHEMA, read_messages
from nanollama.server.ollama.options import Options, read_options
from nanollama.server.problems import JSON, invalid
from nanollama.server.tables import Body, Expects
from nanollama.server.unsupported import Refused

MAX_NAME = 512
MAX_CONTEXT_IDS = 1 << 20

Name = Annotated[str, Field(max_length=MAX_NAME)]


def optional(read: Callable[[Any], Any]) -> PlainValidator:
    """``null`` means that a field was not given."""
    return PlainValidator(lambda value: None if value is None else read(value))


@dataclass(frozen=True, slots=True)
class Lacks:
    """A field that asks for a capability that no model has here, unless its value is one of ``harmless``."""

    capability: str
    harmless: tuple[Any, ...]

    def check(self, name: str, value: object, model: object) -> None:
        """Refuse it with Ollama's own sentence, which clients know."""
        if not Refused("", self.harmless).lets_through(value):
            shown = model[:80] if isinstance(model, str) else ""
            raise invalid(f'"{shown}" does not support {self.capability}', name, "unsupported_parameter")


_THINKING = Lacks("thinking", (False,))
_FORMAT = Refused("the form of an answer can't be enforced", ("",))
_SHIFT = Refused("an answer ends where the context window is full", (False,))
_RENDER = Refused("prompts are not shown", (False,))


class Asking(Body):
    """What chats and single prompts have in common. What is ``None`` comes from the model's own settings."""

    refused: ClassVar[Mapping[str, Refused]] = {
        "format": _FORMAT,
        "shift": _SHIFT,
        "_debug_render_only": _RENDER,
    }
    lacking: ClassVar[Mapping[str, Lacks]] = {}

    model: Annotated[Name, Field(description="the name of a model, as /api/tags lists it")]
    stream: Annotated[bool | None, Field(description="send the answer while it is made (true)")] = None
    options: Annotated[
        Options | None,
        optional(read_options),
        WithJsonSchema({"type": "object"}),
        Field(description="how to generate; see the table of options"),
        Expects("an object"),
    ] = None
    keep_alive: Annotated[
        Keep | None,
        optional(read_keep),
        WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "string"}]}),
        Field(description="how long the model stays in memory afterwards; below 0 for ever, 0 not at all"),
        Expects("seconds, or a time such as 30s, 5m or 1h30m"),
    ] = None
    think: Annotated[
        Any,
        Field(description="false tells the chat template so; anything else is refused"),
        Expects("false"),
    ] = None
    truncate: Annotated[
        bool | None, Field(description="drop the oldest turns of what doesn't fit, and say so (true)")
    ] = None
    logprobs: WantsLogprobs = None
    top_logprobs: TopLogprobs = None

    @classmethod
    def read(cls, given: JSON) -> Self:
        """As ``Body.read``; what needs a capability that is lacking is refused first."""
        if not given.get("model"):
            raise invalid("model is required", "model", "missing_required_parameter")
        for name, lacks in cls.lacking.items():
            lacks.check(name, given.get(name), given.get("model"))
        return super().read({name: value for name, value in given.items() if name not in cls.lacking})

    @property
    def streams(self) -> bool:
        return self.stream is not False

    @property
    def settings(self) -> Options:
        return self.options or Options()

    @property
    def alternatives(self) -> int | None:
        """How many likely tokens go with each token; ``None`` if no logprobs are asked for."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def only_loads(self) -> bool:
        """Whether there is nothing to answer: the model is to be loaded, or unloaded."""
        return True

    def check_together(self) -> None:
        _THINKING.check("think", self.think, self.model)
        if self.top_logprobs and not self.logprobs:
            raise invalid("top_logprobs is only allowed together with logprobs.", "top_logprobs")


class ChatRequest(Asking):
    """The body of ``POST /api/chat``."""

    lacking: ClassVar[Mapping[str, Lacks]] = {"tools": Lacks("tools", ([],))}

    messages: Annotated[
        list[dict[str, str]] | None,
        optional(read_messages),
        WithJsonSchema(MESSAGES_SCHEMA),
        Field(description="the conversation; without any the model is loaded"),
        Expects("a list of messages"),
    ] = None

    @property
    def only_loads(self) -> bool:
        return not self.messages


class GenerateRequest(Asking):
    """The body of ``POST /api/generate``."""

    lacking: ClassVar[Mapping[str, Lacks]] = {
        "suffix": Lacks("insert", ("",)),
        "images": Lacks("vision", ([],)),
    }
    refused: ClassVar[Mapping[str, Refused]] = {
        **Asking.refused,
        "template": Refused("a model has its own template; create a model with another one", ("",)),
        "width": Refused("only text is generated", (0,)),
        "height": Refused("only text is generated", (0,)),
        "steps": Refused("only text is generated", (0,)),
    }

    prompt: Annotated[str | None, Field(description="what to answer; without one the model is loaded")] = None
    system: Annotated[str | None, Field(description="a system prompt in place of the model's")] = None
    raw: Annotated[
        bool | None, Field(description="continue the prompt as it stands, control tokens included")
    ] = None
    context: Annotated[
        list[TokenId] | None,
        Field(max_length=MAX_CONTEXT_IDS, description="the context of an earlier answer, to go on from"),
        Expects("a list of token ids"),
    ] = None

    @property
    def only_loads(self) -> bool:
        return not self.prompt

    def check_together(self) -> None:
        super().check_together()
        if self.raw and (self.system or self.context):
            raise invalid("raw mode does not support template, system, or context", "raw")


class Named(Body):
    """A body that names a model. ``name`` is the older name of the field."""

    model: Annotated[Name, Field(min_length=1, description="the name of a model; name means the same")]

    @classmethod
    def read(cls, given: JSON) -> Self:
        model = given.get("model") or given.get("name")
        if not model:
            raise invalid("model is required", "model", "missing_required_parameter")
        return super().read({**{key: value for key, value in given.items() if key != "name"}, "model": model})


class ShowRequest(Named):
    """The body of ``POST /api/show``."""

    refused: ClassVar[Mapping[str, Refused]] = {
        "system": Refused("a model is shown as it is", ("",)),
        "template": Refused("a model is shown as it is", ("",)),
        "options": Refused("a model is shown as it is", ({},)),
    }

    verbose: Annotated[
        bool | None, Field(description="show long lists of model_info, and the tensors, as well")
    ] = None


class DeleteRequest(Named):
    """The body of ``DELETE /api/delete``."""


class PullRequest(Named):
    """The body of ``POST /api/pull``."""

    refused: ClassVar[Mapping[str, Refused]] = {
        "insecure": Refused("models come over connections that can be trusted", (False,)),
        "username": Refused("the server has its own credentials", ("",)),
        "password": Refused("the server has its own credentials", ("",)),
    }

    stream: Annotated[bool | None, Field(description="send how far it is (true)")] = None


class CopyRequest(Body):
    """The body of ``POST /api/copy``."""

    source: Annotated[Name, Field(min_length=1, description="the name of a model")]
    destination: Annotated[Name, Field(min_length=1, description="its second name")]
