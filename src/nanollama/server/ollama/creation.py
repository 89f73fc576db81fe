"""``POST /api/create``: a checked request in; its base, or the uploaded file, and its recipe out."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field, PlainValidator, WithJsonSchema

from nanollama.errors import FormatError, UsageError
from nanollama.server.ollama.fields import Name, Named, optional
from nanollama.server.ollama.messages import MESSAGES_SCHEMA, read_messages
from nanollama.server.problems import invalid
from nanollama.server.tables import Expects, brief
from nanollama.server.unsupported import Refused
from nanollama.store.names import Digest
from nanollama.store.parameters import DEPRECATED, check_parameter
from nanollama.store.recipe import ParameterValue, Recipe
from nanollama.types import Message

MAX_LICENCES = 64


def read_parameters(value: Any) -> dict[str, ParameterValue]:
    """The checked parameters of a recipe. Raises ``Problem``, which names the parameter."""
    if not isinstance(value, Mapping):
        raise invalid(f"parameters is {brief(value)}; expected an object.", "parameters")
    try:
        return {
            name: check_parameter(name, given)
            for name, given in value.items()
            if given is not None and name not in DEPRECATED
        }
    except UsageError as error:
        raise invalid(f"{error}.", "parameters", "invalid_value") from None


def read_files(value: Any) -> tuple[str, Digest] | None:
    """The one uploaded ``.gguf`` file that ``files`` names, ``None`` if it is empty. Raises ``Problem``."""
    if not isinstance(value, Mapping) or not all(isinstance(each, str) for each in value.values()):
        raise invalid("files is not an object of file names and digests.", "files")
    if not value:
        return None
    if len(value) > 1 or not next(iter(value)).lower().endswith(".gguf"):
        raise invalid(
            "files can't be honoured: a model is created from one uploaded .gguf file; convert a checkpoint "
            "first, or create it on the machine itself with 'nanollama create'.",
            "files",
            "unsupported_parameter",
        )
    ((name, digest),) = value.items()
    try:
        return name, Digest(digest)
    except FormatError as error:
        raise invalid(f"{error}.", "files", "invalid_value") from None


class CreateRequest(Named):
    """The body of ``POST /api/create``."""

    refused: ClassVar[Mapping[str, Refused]] = {
        "adapters": Refused("adapters can't be applied", ({},)),
        "draft_files": Refused("no draft model is used", ({},)),
        "draft_quantize": Refused("no draft model is used", ("",)),
        "renderer": Refused("it names code inside Ollama", ("",)),
        "parser": Refused("it names code inside Ollama", ("",)),
        "remote_host": Refused("models run on this machine", ("",)),
        "info": Refused("what a file says of itself can't be changed", ({},)),
        "path": Refused("a request can't name a path; upload the file", ("",)),
        "modelfile": Refused("it was replaced by from, files, parameters and the others", ("",)),
    }
    ignored: ClassVar[Mapping[str, str]] = {"requires": "it means a version of Ollama"}

    base: Annotated[
        Name | None, Field(alias="from", description="the name of the model that it is made from")
    ] = None
    files: Annotated[
        tuple[str, Digest] | None,
        optional(read_files),
        WithJsonSchema({"type": "object", "additionalProperties": {"type": "string"}}),
        Field(description="the uploaded .gguf file that it is made from: its name, and its digest"),
        Expects("an object of one file name with a digest"),
    ] = None
    template: Annotated[
        str | None, Field(description="a chat template, in Jinja or one of Ollama's in Go")
    ] = None
    license: Annotated[
        tuple[str, ...] | None,
        PlainValidator(lambda value: _texts(value)),
        WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
        Field(description="one or several licences, besides those of the base"),
        Expects(f"a text, or a list of up to {MAX_LICENCES} of them"),
    ] = None
    system: Annotated[str | None, Field(description="the system prompt")] = None
    parameters: Annotated[
        dict[str, ParameterValue] | None,
        optional(read_parameters),
        WithJsonSchema({"type": "object"}),
        Field(description="the parameters of a Modelfile"),
        Expects("an object"),
    ] = None
    messages: Annotated[
        list[dict[str, str]] | None,
        optional(read_messages),
        WithJsonSchema(MESSAGES_SCHEMA),
        Field(description="messages that every conversation begins with"),
        Expects("a list of messages"),
    ] = None
    quantize: Annotated[
        str | None, Field(description="the type to write the weights in, as for nanollama create")
    ] = None
    stream: Annotated[bool | None, Field(description="send how far it is (true)")] = None

    def check_together(self) -> None:
        if bool(self.base) == bool(self.files):
            raise invalid(
                "neither 'from' or 'files' was specified"
                if not self.base
                else "from and files are both given; expected one of them.",
                "from",
            )
        if self.files and self.quantize:
            raise invalid("quantize needs a base given by from; create the model first.", "quantize")

    def recipe(self) -> Recipe:
        """What it adds to its base. Raises ``NanollamaError`` for a template that can't be read."""
        from nanollama.store.go_templates import jinja_for

        return Recipe(
            template=jinja_for(self.template) if self.template else None,
            system=self.system or None,
            parameters=self.parameters or {},
            messages=tuple(Message(each["role"], each["content"]) for each in self.messages or ()),
            licences=self.license or (),
        )


def _texts(value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or len(texts) > MAX_LICENCES:
        raise ValueError("not a list of texts")
    if not all(isinstance(each, str) for each in texts):
        raise ValueError("not a list of texts")
    return tuple(each for each in texts if each)
