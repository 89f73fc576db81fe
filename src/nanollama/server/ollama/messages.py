"""The ``messages`` of Ollama's requests: JSON from outside in, mappings of role and content out.

What can't be honoured (tools, images, reasoning) is refused by name where it is not empty.
"""

from collections.abc import Mapping
from typing import Any

from nanollama.server.body import shown
from nanollama.server.messages import read_each
from nanollama.server.problems import invalid

ROLES = ("system", "user", "assistant")
EMPTY_FIELDS: Mapping[str, str] = {
    "images": "images are not supported",
    "thinking": "reasoning is not supported",
    "tool_calls": "tool calls are not supported",
    "tool_name": "tool calls are not supported",
    "tool_call_id": "tool calls are not supported",
}
"""What clients send along; it means nothing while it is null or empty."""

MESSAGES_SCHEMA: dict[str, Any] = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["role", "content"],
        "additionalProperties": False,
        "properties": {"role": {"enum": list(ROLES)}, "content": {"type": "string"}},
    },
}


def read_messages(value: Any) -> list[dict[str, str]]:
    """The checked messages. Raises ``Problem``, which names the place."""
    return read_each(value, "a list of messages", _message)


def _message(value: Any, where: str) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise invalid(f"{where} is not an object with role and content.", where)
    role, content = value.get("role"), value.get("content")
    role = role.lower() if isinstance(role, str) else None
    if role == "tool":
        raise invalid(f"{where}.role is tool, and tool calls are not supported.", where)
    if role not in ROLES:
        raise invalid(f"{where}.role is not one of {', '.join(ROLES)}.", f"{where}.role")
    for name, given in value.items():
        if name in ("role", "content"):
            continue
        if name not in EMPTY_FIELDS:
            raise invalid(f"Unknown field {shown(name)} in {where}.", where, "unknown_parameter")
        if given:
            raise invalid(f"{where}.{name} can't be honoured, because {EMPTY_FIELDS[name]}.", where)
    if content is not None and not isinstance(content, str):
        raise invalid(f"{where}.content is not a text.", f"{where}.content")
    return {"role": role, "content": content or ""}
