"""What in a prompt came from outside: in comes a renderer, out come spans that no control token may touch.

A prompt is rendered twice: as it is, and with stand-ins for some characters of everything that came from
outside. Where the second text has a stand-in, the first has a character from outside. Stand-ins are
private-use characters drawn at random from those that occur nowhere in the rendering, so nobody can forge
one. Hiding every character that begins or ends some control token is enough: it also covers a token put
together from two messages.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from nanollama.errors import TemplateError

Variables = dict[str, Any]
Span = tuple[int, int]

_PRIVATE_USE = (range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))
_DRAWS = 1000


def mark_literal(
    text: str,
    variables: Variables,
    control_tokens: Iterable[str],
    render: Callable[[Callable[[], Variables]], str],
) -> tuple[Span, ...]:
    """Half-open spans of ``text``, the rendering of ``variables``, that came from them; sorted and disjoint.

    ``render`` calls its argument for the variables of one more rendering.

    Raises:
        TemplateError: the template looks for a control token in messages, so that hiding it would change
            the text.
    """
    tokens = sorted({token for token in control_tokens if token}, key=len, reverse=True)
    edges = {edge for token in tokens for edge in (token[0], token[-1])}
    outside = list(_strings(variables))
    if not any(edge in string for string in outside for edge in edges):
        return ()
    stand_ins = _draw(edges, [text, *outside])

    hide_all = str.maketrans(stand_ins)
    fully = render(lambda: _replace(variables, lambda string: string.translate(hide_all)))
    if _shown(fully, stand_ins) == text:
        return _spans(fully, stand_ins)

    # The template looks into messages, say for "</think>", and saw something else. Hide only what is a
    # control token from end to end; then no other one may have come together, compared with the rendering in
    # which none could.
    partly = render(lambda: _replace(variables, lambda string: _hide_tokens(string, tokens, stand_ins)))
    anything = re.compile("|".join(map(re.escape, tokens)))
    if _shown(partly, stand_ins) == text and anything.findall(partly) == anything.findall(fully):
        return _spans(partly, stand_ins)
    culprit = next((token for token in tokens for string in outside if token in string), None)
    raise TemplateError(
        f"A message contains {culprit}, a control token that this model's chat template treats specially; "
        "remove it from the message."
        if culprit
        else "The messages put together would form a control token of this model; "
        f"remove {' and '.join(sorted(edges))} where one message ends and the next begins."
    )


def _draw(edges: Iterable[str], texts: list[str]) -> dict[str, str]:
    """One stand-in for each of ``edges``, none of which occurs in ``texts``."""
    import secrets  # takes 6 ms, and most messages need no stand-in

    stand_ins: dict[str, str] = {}
    draws = 0
    for edge in sorted(edges):
        while edge not in stand_ins:
            drawn = chr(secrets.choice(secrets.choice(_PRIVATE_USE)))
            if drawn not in stand_ins.values() and not any(drawn in text for text in texts):
                stand_ins[edge] = drawn
            draws += 1
            if draws > _DRAWS:
                raise TemplateError(
                    "The messages use up the private-use characters of Unicode; remove some of them."
                )
    return stand_ins


def _shown(hidden: str, stand_ins: Mapping[str, str]) -> str:
    return hidden.translate({ord(stand_in): edge for edge, stand_in in stand_ins.items()})


def _spans(hidden: str, stand_ins: Mapping[str, str]) -> tuple[Span, ...]:
    return tuple(match.span() for match in re.finditer(f"[{''.join(stand_ins.values())}]+", hidden))


def _hide_tokens(string: str, tokens: Iterable[str], stand_ins: Mapping[str, str]) -> str:
    """``string`` with both ends of each occurrence of a token hidden, overlapping ones too."""
    hidden = list(string)
    for token in tokens:
        start = string.find(token)
        while start >= 0:
            end = start + len(token) - 1
            hidden[start], hidden[end] = stand_ins[token[0]], stand_ins[token[-1]]
            start = string.find(token, start + 1)
    return "".join(hidden)


def _strings(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _strings(list(value.keys()))
        yield from _strings(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _strings(item)


def _replace(value: Any, change: Callable[[str], str]) -> Any:
    """A copy of ``value`` with its strings changed, but not the names of fields and roles, which are looked
    up.
    """
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {
            key if _is_name(key) else change(key): item
            if key == "role" and _is_name(item)
            else _replace(item, change)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_replace(item, change) for item in value]
    return value


def _is_name(value: Any) -> bool:
    return not isinstance(value, str) or value.isidentifier()
