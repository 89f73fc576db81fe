"""Ollama's chat templates, which are Go's text/template, as Jinja: source in, source out.

The Jinja renders what Ollama renders: messages of one role that follow one another become one, and a template
without ``.Messages`` is applied turn by turn, the last time only up to ``.Response``. A construct without an
equivalent is refused by name; nothing is guessed.
"""

import re
from dataclasses import replace

from nanollama.errors import TemplateError
from nanollama.store.go_syntax import (
    MAX_CHARS,
    Assign,
    Body,
    Call,
    Expression,
    Field,
    If,
    Literal,
    Output,
    Range,
    Statement,
    With,
    parse_template,
)
from nanollama.store.go_translate import Translator

_GO_ACTION = re.compile(
    r"\{\{-?[ \t\r\n]*(?:[.$]|/\*|(?:if|range|with|else|end|define|block|template)\b"
    r"|[^}]{0,200}?[ \t\r\n(](?:\$|\.[A-Z]))"
)
"""An action that only Go has: a keyword, a comment, a variable, or a field with nothing before its dot."""

_WHOLE_PRELUDE = """\
{%- set state = namespace(turns=messages, role='', repeats=false) %}
{%- for message in messages %}
  {%- if message.role == state.role and message.role != 'tool' %}
    {%- set state.repeats = true %}
  {%- endif %}
  {%- set state.role = message.role %}
{%- endfor %}
{%- if state.repeats %}
  {%- set state.turns = [] %}
  {%- for message in messages %}
    {%- if state.turns and state.turns[-1].role == message.role and message.role != 'tool' %}
      {%- set both = state.turns[-1].content ~ '\\n\\n' ~ message.content %}
      {%- set state.turns = state.turns[:-1] + [{'role': message.role, 'content': both}] %}
    {%- else %}
      {%- set state.turns = state.turns + [message] %}
    {%- endif %}
  {%- endfor %}
{%- endif %}
{%- set turns = state.turns %}
{%- set instructions = messages | selectattr('role', 'equalto', 'system') %}
{%- set system = instructions | map(attribute='content') | join('\\n\\n') %}
{%- set prompt = '' %}
{%- set response = '' %}
{%- if not add_generation_prompt %}
  {{- raise_exception('this template always ends where the assistant begins to speak') }}
{%- endif %}
"""
"""Neighbours of one role become one message, and ``system`` is the text of all system messages."""

_TURN_DRIVER = """\
{%- set state = namespace(role='', system='', prompt='', response='') %}
{%- for message in messages %}
  {%- set joined = message.role == state.role %}
  {%- if message.role == 'system' %}
    {%- if not joined and (state.prompt or state.response) %}
      {{- turn(state.system, state.prompt, state.response) }}
      {%- set state.prompt = '' %}
      {%- set state.response = '' %}
    {%- endif %}
    {%- set state.system = state.system ~ '\\n\\n' ~ message.content if joined else message.content %}
  {%- elif message.role == 'user' %}
    {%- if not joined and state.response %}
      {{- turn(state.system, state.prompt, state.response) }}
      {%- set state.system = '' %}
      {%- set state.response = '' %}
    {%- endif %}
    {%- set state.prompt = state.prompt ~ '\\n\\n' ~ message.content if joined else message.content %}
  {%- elif message.role == 'assistant' %}
    {%- set state.response = state.response ~ '\\n\\n' ~ message.content if joined else message.content %}
  {%- endif %}
  {%- set state.role = message.role %}
{%- endfor %}
{%- if add_generation_prompt %}
  {{- last_turn(state.system, state.prompt, state.response) }}
{%- else %}
  {{- turn(state.system, state.prompt, state.response) }}
{%- endif %}
"""
"""A turn is written when the next one begins; the last one is left open for the answer."""


def is_go(template: str) -> bool:
    """Whether a template is Go's rather than Jinja: it has actions that only Go has, and no Jinja blocks."""
    return "{%" not in template and "{#" not in template and _GO_ACTION.search(template) is not None


def jinja_for(template: str) -> str:
    """A template as Jinja: one that is Jinja as it stands, one of Ollama's translated.

    Raises:
        TemplateError: it is malformed.
        UnsupportedError: it uses a construct that has no equivalent, which is named.
    """
    if len(template) > MAX_CHARS:
        raise TemplateError(
            f"the template has {len(template):,} characters; at most {MAX_CHARS:,} are accepted"
        )
    if not is_go(template):
        return template
    body = parse_template(template)
    fields = _whole_fields(body)
    if "Messages" in fields:
        return _WHOLE_PRELUDE + Translator(template).lines(body)
    if "Response" not in fields:
        body = (*body, Output(Field(".", ("Response",))))
    translated = Translator(template).lines(body)
    left_open = Translator(template).lines(_until_response(body)[0])
    return (
        f"{{%- macro turn(system, prompt, response) %}}\n{translated}{{%- endmacro %}}\n"
        f"{{%- macro last_turn(system, prompt, response) %}}\n{left_open}{{%- endmacro %}}\n{_TURN_DRIVER}"
    )


def _until_response(body: Body) -> tuple[Body, bool]:
    """``body`` up to and with its first ``.Response``, as Ollama cuts a turn that is still to be answered."""
    kept: list[Statement] = []
    for statement in body:
        is_cut = False
        match statement:
            case Output(value) | Assign(_, value):
                is_cut = "Response" in _fields_of(value)
            case If() | With() | Range():
                inner, is_cut = _until_response(statement.body)
                otherwise, is_cut_later = ((), False) if is_cut else _until_response(statement.otherwise)
                statement = replace(statement, body=inner, otherwise=otherwise)
                is_cut = is_cut or is_cut_later
        kept.append(statement)
        if is_cut:
            return tuple(kept), True
    return tuple(kept), False


def _whole_fields(body: Body) -> set[str]:
    """The names of all fields that a template uses."""
    names: set[str] = set()
    for statement in body:
        match statement:
            case Output(value) | Assign(_, value):
                names |= _fields_of(value)
            case If(value, inner, otherwise) | With(value, inner, otherwise):
                names |= _fields_of(value) | _whole_fields(inner) | _whole_fields(otherwise)
            case Range(_, value, inner, otherwise):
                names |= _fields_of(value) | _whole_fields(inner) | _whole_fields(otherwise)
    return names


def _fields_of(expression: Expression) -> set[str]:
    match expression:
        case Field(base, names):
            return set(names) | (_fields_of(base) if isinstance(base, Call | Literal) else set())
        case Call(_, arguments):
            return {name for each in arguments for name in _fields_of(each)}
    return set()
