"""The ``messages`` of a chat request: JSON from outside in, mappings of role and content out.

Parts of text become one text, ``developer`` becomes ``system``. What can't be honoured is refused by name.
"""

from collections.abc import Callable, Mapping
from typing import Any

from nanollama.server.body import shown
from nanollama.server.problems import Problem, invalid

MAX_MESSAGES = 4096
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
"""Role of a request -> role in the chat template."""

MESSAGE_FIELDS = frozenset({"role", "content", "name"})
"""``name`` goes to the chat template, where some have a place for it."""

EMPTY_FIELDS = frozenset(
    {"annotations", "audio", "function_call", "reasoning_content", "refusal", "tool_calls"}
)
"""What clients send back with an assistant's message; it means nothing while it is null or empty."""

MESSAGES_SCHEMA: dict[str, Any] = {
    "type": "array",
    "minItems": 1,
    "maxItems": MAX_MESSAGES,
    "items": {
        "type": "object",
        "required": ["role", "content"],
        "additionalProperties": False,
        "properties": {
            "role": {"enum": list(ROLES)},
            "name": {"type": "string", "pattern": "^[a-zA-Z0-9_-]{1,64}$"},
            "content": {
                "anyOf": [
                    {"type": "string"},
                    {
                        "type": "array",
                        "minItems": 1,
                        "items": {
                            "type": "object",
                            "required": ["type", "text"],
                            "additionalProperties": False,
                            "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
                        },
                    },
                ]
            },
        },
    },
}


def read_messages(value: Any) -> list[dict[str, str]]:
    """The checked messages. Raises ``Problem``, which names the place."""
    if not value:
        raise invalid("messages is not a list of at least one message.", "messages")
    return read_each(value, "a list of at least one message", _message)


def read_each(value: Any, what: str, read: Callable[[Any, str], dict[str, str]]) -> list[dict[str, str]]:
    """Each message of a list, by ``read(message, place)``. Raises ``Problem`` for what is not ``what``."""
    if not isinstance(value, list):
        raise invalid(f"messages is not {what}.", "messages")
    if len(value) > MAX_MESSAGES:
        raise invalid(f"messages has {len(value)} entries; at most {MAX_MESSAGES} are allowed.", "messages")
    return [read(message, f"messages[{index}]") for index, message in enumerate(value)]


def _message(value: Any, where: str) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise invalid(f"{where} is not an object with role and content.", where)
    role = value.get("role")
    if role in ("tool", "function"):
        raise _unsupported(f"{where}.role", f"The role {role!r} needs tool calls, which are not supported.")
    if not isinstance(role, str) or role not in ROLES:
        raise invalid(f"{where}.role is not one of {', '.join(ROLES)}.", f"{where}.role")
    for name in sorted(set(value) - MESSAGE_FIELDS):
        if name not in EMPTY_FIELDS:
            raise invalid(f"Unknown field {shown(name)} in {where}.", where, "unknown_parameter")
        if value[name]:
            raise _unsupported(f"{where}.{name}", f"{name} in a message is not supported.")
    message = {"role": ROLES[role], "content": _content(value.get("content"), f"{where}.content")}
    if value.get("name") is not None:
        _check_name(value["name"], f"{where}.name")
        message["name"] = value["name"]
    return message


def _content(value: Any, where: str) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise invalid(f"{where} is neither a text nor a list of text parts.", where)
    return "".join(_part(part, f"{where}[{index}]") for index, part in enumerate(value))


def _part(value: Any, where: str) -> str:
    if not isinstance(value, Mapping) or not isinstance(value.get("type"), str):
        raise invalid(f"{where} is not an object with a type.", where)
    if value["type"] != "text":
        raise _unsupported(where, f"Parts of type {shown(value['type'])} are not supported; send text.")
    if set(value) != {"type", "text"} or not isinstance(value["text"], str):
        raise invalid(f"{where} is not a part with type and text.", where)
    return value["text"]


def _check_name(value: Any, where: str) -> None:
    plain = isinstance(value, str) and 1 <= len(value) <= 64 and value.isascii()
    if not plain or not value.replace("_", "a").replace("-", "a").isalnum():
        raise invalid(f"{where} is not a name of 1 to 64 letters, digits, '_' and '-'.", where)


def _unsupported(where: str, message: str) -> Problem:
    return invalid(message, where, "unsupported_parameter")
