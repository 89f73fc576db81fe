"""What a Modelfile adds to weights: the fields of a recipe, and their form in ``models.json``.

A JSON value in, a Recipe out, and back without loss; what is empty is left out of the JSON. Parameters have
Ollama's names, and the template is Jinja.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nanollama.errors import FormatError

if TYPE_CHECKING:
    from nanollama.types import Message

ParameterValue = int | float | bool | str | tuple[str, ...]
"""The value of one parameter; a tuple where it can be given several times (``stop``)."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a model has besides its weights; ``None`` and empty leave the checkpoint's own.

    ``template`` is Jinja source, ``messages`` begin every conversation, ``adapters`` are paths, and
    ``requires`` is the version that the Modelfile asks for.
    """

    template: str | None = None
    system: str | None = None
    parameters: Mapping[str, ParameterValue] = field(default_factory=dict)
    messages: tuple["Message", ...] = ()
    licences: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    requires: str | None = None


def recipe_to_json(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON's types; an empty recipe is ``{}``."""
    parameters = {name: list(v) if isinstance(v, tuple) else v for name, v in recipe.parameters.items()}
    values: dict[str, Any] = {
        "template": recipe.template,
        "system": recipe.system,
        "parameters": parameters or None,
        "messages": [{"role": m.role, "content": m.content} for m in recipe.messages] or None,
        "licences": list(recipe.licences) or None,
        "adapters": list(recipe.adapters) or None,
        "requires": recipe.requires,
    }
    return {name: value for name, value in values.items() if value is not None}


def recipe_from_json(value: object) -> Recipe:
    """The recipe that :func:`recipe_to_json` wrote.

    Raises:
        FormatError: it has another shape.
    """
    fields = _mapping(value, "a recipe")
    known = ("template", "system", "parameters", "messages", "licences", "adapters", "requires")
    if unknown := sorted(set(fields) - set(known)):
        raise FormatError(f"a recipe has a field {unknown[0]!r:.80}; known are {', '.join(known)}")
    messages = _list(fields.get("messages"), "messages")
    return Recipe(
        template=_text(fields.get("template"), "template"),
        system=_text(fields.get("system"), "system"),
        parameters={
            name: _parameter(name, given)
            for name, given in _mapping(fields.get("parameters", {}), "its parameters").items()
        },
        messages=tuple(map(_message, messages)),
        licences=_texts(fields.get("licences"), "licences"),
        adapters=_texts(fields.get("adapters"), "adapters"),
        requires=_text(fields.get("requires"), "requires"),
    )


def _mapping(value: object, what: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise FormatError(f"{what} is {value!r:.80}; expected an object")
    return value


def _list(value: object, name: str) -> list[object]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise FormatError(f"a recipe's {name} is {value!r:.80}; expected a list")
    return value


def _text(value: object, name: str) -> str | None:
    if value is not None and not isinstance(value, str):
        raise FormatError(f"a recipe's {name} is {value!r:.80}; expected a text")
    return value


def _texts(value: object, name: str) -> tuple[str, ...]:
    items = _list(value, name)
    texts = tuple(item for item in items if isinstance(item, str))
    if len(texts) != len(items):
        raise FormatError(f"a recipe's {name} is {value!r:.80}; expected a list of texts")
    return texts


def _message(value: object) -> "Message":
    from nanollama.types import Message

    fields = _mapping(value, "a message of a recipe")
    role, content = fields.get("role"), fields.get("content")
    if len(fields) != 2 or not isinstance(role, str) or not isinstance(content, str):
        raise FormatError(f"a message of a recipe is {value!r:.80}; expected role and content, two texts")
    return Message(role, content)


def _parameter(name: str, value: object) -> ParameterValue:
    if isinstance(value, list):
        return _texts(value, name)
    if not isinstance(value, int | float | str):
        raise FormatError(f"a recipe's parameter {name!r:.80} is {value!r:.80}; expected one value or a list")
    return value


def over(recipe: Recipe, base: Recipe) -> Recipe:
    """``recipe`` on top of that of its base: what it leaves open comes from there, and licences add up."""
    return Recipe(
        template=base.template if recipe.template is None else recipe.template,
        system=base.system if recipe.system is None else recipe.system,
        parameters={**base.parameters, **recipe.parameters},
        messages=recipe.messages or base.messages,
        licences=base.licences + recipe.licences,
        adapters=recipe.adapters or base.adapters,
        requires=base.requires if recipe.requires is None else recipe.requires,
    )
