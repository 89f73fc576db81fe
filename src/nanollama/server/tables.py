"""A request body as a table of fields: a JSON object in, a checked object or a refusal by name out.

A field is supported (it is a field of the class), ignored because nothing depends on it, or refused. The
reference pages and the OpenAPI page are made from these tables.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from nanollama.server.body import shown
from nanollama.server.problems import JSON, invalid
from nanollama.server.unsupported import Refused

MAX_TOKENS = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Expects:
    """How the values of a field are described, where its type doesn't say it."""

    text: str


class Body(BaseModel):
    """A request body. A field that is ``None`` was not given."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)
    refused: ClassVar[Mapping[str, Refused]] = {}
    ignored: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def read(cls, given: JSON) -> Self:
        """The checked request. Raises ``Problem``, which names the field."""
        kept = {}
        fields = fields_of(cls)
        for name, value in given.items():
            if name in fields:
                kept[name] = value
            elif refused := cls.refused.get(name):
                if not refused.lets_through(value):
                    raise invalid(
                        f"Unsupported parameter: {name} can't be honoured, because {refused.why}.",
                        name,
                        "unsupported_parameter",
                    )
            elif name not in cls.ignored:
                hint = did_you_mean(name, [*fields, *cls.refused])
                raise invalid(f"Unknown parameter: {shown(name)}.{hint}", name[:60], "unknown_parameter")
        try:
            request = cls.model_validate(kept)
        except ValidationError as error:
            name = str(
                error.errors(include_url=False, include_input=False, include_context=False)[0]["loc"][0]
            )
            if name not in kept:
                raise invalid(f"{name} is missing.", name, "missing_required_parameter") from None
            raise invalid(
                f"{name} is {brief(kept[name])}; expected {expected(cls, name)}.", name, "invalid_value"
            ) from None
        request.check_together()
        return request

    def check_together(self) -> None:
        """Refuse values that are right alone but not together."""


def fields_of(request: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields of a body, by the names that stand in it."""
    return {field.alias or name: field for name, field in request.model_fields.items()}


def expected(request: type[BaseModel], name: str) -> str:
    """The values that a field takes, in words."""
    field = fields_of(request)[name]
    low = high = None
    for item in field.metadata:
        if isinstance(item, Expects):
            return item.text
        low, high = getattr(item, "ge", low), getattr(item, "le", high)
    kinds = str(field.annotation)
    if "bool" in kinds:
        return "true or false"
    if "int" in kinds or "float" in kinds:
        kind = "a whole number" if "int" in kinds else "a number"
        return f"{kind} of at least {low:g}" if high == MAX_TOKENS else f"{kind} from {low:g} to {high:g}"
    return "a text"


def supported_rows(request: type["Body"]) -> Iterator[str]:
    """The supported fields of a body as the rows of a table in a reference page."""
    yield "| supported | takes | what it does |\n| --- | --- | --- |"
    for name, field in fields_of(request).items():
        needed = " (needed)" if field.is_required() else ""
        yield f"| `{name}`{needed} | {expected(request, name)} | {field.description} |"


def did_you_mean(name: str, known: list[str]) -> str:
    """A sentence that names the one of ``known`` that ``name`` looks like, or nothing."""
    close = get_close_matches(name[:60], known, n=1)
    return f" Did you mean {close[0]}?" if close else ""


def brief(value: object) -> str:
    """A value as it may be quoted back."""
    if isinstance(value, str):
        return shown(value)
    if isinstance(value, dict | list):
        entries = "1 entry" if len(value) == 1 else f"{len(value)} entries"
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {entries}"
    return shown(json.dumps(value)).strip("'")


def resolved_schema(kind: type[BaseModel]) -> Any:
    """The JSON schema of a body, its references replaced by what they refer to; none refers to itself."""
    schema = kind.model_json_schema()
    return _resolved(schema, schema.pop("$defs", {}))


def _resolved(schema: Any, shared: JSON) -> Any:
    if isinstance(schema, list):
        return [_resolved(each, shared) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _resolved(shared[schema["$ref"].removeprefix("#/$defs/")], shared)
    return {name: _resolved(value, shared) for name, value in schema.items()}


def takes(kind: type[BaseModel]) -> dict[str, Any]:
    """How the OpenAPI page describes a body that the gate reads and ``kind`` checks."""
    content = {"application/json": {"schema": resolved_schema(kind)}}
    return {"requestBody": {"required": True, "content": content}}
