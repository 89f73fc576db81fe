"""A tree of Go's text/template as lines of Jinja: statements and expressions in, source out.

A value is known by the names of its fields, so that what Go prints as JSON is printed as JSON. Whatever has
no equivalent is refused by name.
"""

import json
import re
from dataclasses import dataclass
from typing import Literal as OneOf

from nanollama.store.go_syntax import (
    Assign,
    Body,
    Call,
    Expression,
    Field,
    If,
    Jump,
    Literal,
    Output,
    Range,
    Statement,
    Text,
    With,
    refused,
)

Kind = OneOf["text", "bool", "json", "list", "any"]
"""What a value is when it is printed: text as it stands, json as JSON; a list is not printed at all."""


@dataclass(frozen=True, slots=True)
class Code:
    """A Jinja expression. ``is_atom`` says that it needs no brackets inside another one."""

    text: str
    kind: Kind = "text"
    is_atom: bool = True

    @property
    def inside(self) -> str:
        return self.text if self.is_atom else f"({self.text})"


_WHOLE: dict[str, Code] = {
    "System": Code("system"),
    "Prompt": Code("prompt"),
    "Response": Code("response"),
    "Messages": Code("turns", "list"),
    "Suffix": Code("''"),
    "Tools": Code("tools", "json"),
    "Think": Code("enable_thinking | default(false)", "bool", is_atom=False),
    "ThinkLevel": Code("reasoning_effort | default('')", is_atom=False),
    "IsThinkSet": Code("enable_thinking is defined", "bool", is_atom=False),
}
"""Fields of what the template is given. There is no suffix in a conversation."""

_FIELDS: dict[str, tuple[str, Kind]] = {
    "Role": ("role", "text"),
    "Content": ("content", "text"),
    "Thinking": ("reasoning_content", "text"),
    "ToolCalls": ("tool_calls", "json"),
    "ToolName": ("name", "text"),
    "ToolCallID": ("tool_call_id", "text"),
    "ID": ("id", "text"),
    "Index": ("index", "text"),
    "Type": ("type", "text"),
    "Function": ("function", "json"),
    "Name": ("name", "text"),
    "Description": ("description", "text"),
    "Arguments": ("arguments", "json"),
    "Parameters": ("parameters", "json"),
    "Properties": ("properties", "json"),
    "Required": ("required", "json"),
    "Enum": ("enum", "json"),
}
"""Fields of a message, a tool and a tool call."""

_MAPPINGS = frozenset({"Arguments", "Properties"})
"""Fields that a loop goes through by key."""

_OTHER_FUNCTIONS = ("and", "or", "not", "len", "slice", "index", "json", "printf", "currentDate")
_COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}


class Translator:
    """Statements to lines of Jinja. Each line strips the layout before it, so that only texts are written."""

    def __init__(self, template: str) -> None:
        self._dot: Code | None = None  # None: the whole
        self._variables: dict[str, Code] = {}
        self._numbers = 0
        self._loops = 0
        # A variable that is set again lives in a namespace: Jinja's blocks can't change an outer variable.
        self._changed = frozenset(re.findall(r"(\$\w+)[ \t\r\n]*=[^=]", template))

    def lines(self, body: Body, indent: str = "") -> str:
        lines: list[str] = []
        pending: list[str] = []
        outer = dict(self._variables)
        for statement in body:
            if isinstance(statement, Text | Output):
                pending.append(
                    _quoted(statement.text)
                    if isinstance(statement, Text)
                    else _printed(self._value(statement.value))
                )
                continue
            lines += _output(pending, indent)
            lines.append(self._block(statement, indent))
        lines += _output(pending, indent)
        self._variables = outer
        return "".join(lines)

    def _block(self, statement: Statement, indent: str) -> str:
        match statement:
            case Assign():
                return indent + self._assign(statement)
            case If(condition, body, otherwise):
                return self._if(self._value(condition).text, body, otherwise, indent)
            case With():
                return self._with(statement, indent)
            case Range():
                return self._range(statement, indent)
            case Jump(word):
                if not self._loops:
                    raise refused(f"{{{{ {word} }}}} outside of {{{{ range }}}}")
                return f"{indent}{{%- {word} %}}\n"
        raise AssertionError(statement)

    def _assign(self, statement: Assign) -> str:
        value = self._value(statement.value)
        if not statement.is_new:
            known = self._variables.get(statement.name)
            if known is None:
                raise refused(f"the variable {statement.name}, which is not declared,")
            return f"{{%- set {known.text} = {value.text} %}}\n"
        name = self._new_name(statement.name.lstrip("$") or "value")
        if statement.name in self._changed:
            self._variables[statement.name] = Code(f"{name}.value", value.kind)
            return f"{{%- set {name} = namespace(value={value.text}) %}}\n"
        self._variables[statement.name] = Code(name, value.kind)
        return f"{{%- set {name} = {value.text} %}}\n"

    def _if(self, condition: str, body: Body, otherwise: Body, indent: str) -> str:
        text = f"{indent}{{%- if {condition} %}}\n{self.lines(body, indent + '  ')}"
        while len(otherwise) == 1 and isinstance(otherwise[0], If):
            branch = otherwise[0]
            text += f"{indent}{{%- elif {self._value(branch.condition).text} %}}\n"
            text += self.lines(branch.body, indent + "  ")
            otherwise = branch.otherwise
        if otherwise:
            text += f"{indent}{{%- else %}}\n{self.lines(otherwise, indent + '  ')}"
        return f"{text}{indent}{{%- endif %}}\n"

    def _with(self, statement: With, indent: str) -> str:
        value = self._value(statement.value)
        name = self._new_name("it")
        text = f"{indent}{{%- set {name} = {value.text} %}}\n{indent}{{%- if {name} %}}\n"
        text += self._looking_at(Code(name, value.kind), statement.body, indent)
        if statement.otherwise:
            text += f"{indent}{{%- else %}}\n{self.lines(statement.otherwise, indent + '  ')}"
        return f"{text}{indent}{{%- endif %}}\n"

    def _range(self, statement: Range, indent: str) -> str:
        value = self._value(statement.value)
        if value.kind == "bool" or isinstance(statement.value, Literal):
            raise refused("{{ range }} over something that is no list")
        is_mapping = isinstance(statement.value, Field) and _last_name(statement.value) in _MAPPINGS
        item = self._new_name("item")
        kind: Kind = "json" if value.kind == "json" else "any"
        outer = dict(self._variables)
        names = [name for name in statement.names if name != "$_"]
        if statement.names and statement.names[-1] in names:
            self._variables[statement.names[-1]] = Code(item, kind)
        text, counter = "", ""
        if len(statement.names) == 2 and statement.names[0] in names:
            counter = self._new_name("key" if is_mapping else "i")
            self._variables[statement.names[0]] = Code(counter)
            if not is_mapping:
                text = f"{indent}  {{%- set {counter} = loop.index0 %}}\n"
        target, source = item, value.text
        if is_mapping:
            target, source = f"{counter or '_'}, {item}", f"({value.inside} or {{}}).items()"
        elif value.kind == "json":
            source = f"{value.inside} or []"  # absent tools are none, not an empty list
        self._loops += 1
        text += self._looking_at(Code(item, kind), statement.body, indent)
        self._loops -= 1
        self._variables = outer
        if statement.otherwise:
            text += f"{indent}{{%- else %}}\n{self.lines(statement.otherwise, indent + '  ')}"
        return f"{indent}{{%- for {target} in {source} %}}\n{text}{indent}{{%- endfor %}}\n"

    def _looking_at(self, dot: Code, body: Body, indent: str) -> str:
        outer, self._dot = self._dot, dot
        text = self.lines(body, indent + "  ")
        self._dot = outer
        return text

    def _new_name(self, stem: str) -> str:
        self._numbers += 1
        return f"{stem}_{self._numbers}"

    def _value(self, expression: Expression) -> Code:
        match expression:
            case Literal(str() as text):
                return Code(_quoted(text))
            case Literal(value):
                return Code(json.dumps(value), "bool" if isinstance(value, bool) else "text")
            case Field():
                return self._field(expression)
            case Call(function, arguments):
                return self._call(function, arguments)

    def _field(self, field: Field) -> Code:
        names = field.names
        if isinstance(field.base, Call | Literal):
            code = self._value(field.base)
        elif field.base == "$" or (field.base == "." and self._dot is None):
            if not names:
                raise refused("the whole of its data as a value")
            if names[0] not in _WHOLE:
                raise refused(f"the field .{names[0]}")
            code, names = _WHOLE[names[0]], names[1:]
        elif field.base == ".":
            assert self._dot is not None  # the other case is above
            code = self._dot
        elif field.base in self._variables:
            code = self._variables[field.base]
        else:
            raise refused(f"the variable {field.base}, which is not declared,")
        for name in names:
            if name not in _FIELDS:
                raise refused(f"the field .{name}")
            key, kind = _FIELDS[name]
            code = Code(f"{code.inside}.{key}", kind)
        return code

    def _call(self, function: str, arguments: tuple[Expression, ...]) -> Code:
        if function == "len" and len(arguments) == 1 and _is_slice_from(arguments[0]):
            # len (slice x i): counted without a copy of the list for every turn
            whole, start = (self._value(each) for each in arguments[0].arguments)  # type: ignore[union-attr]  # a Call
            return Code(f"{whole.inside} | length - {start.inside}", is_atom=False)
        values = [self._value(each) for each in arguments]
        match function, values:
            case (("eq" | "ne" | "lt" | "le" | "gt" | "ge"), [left, right]):
                return Code(f"{left.inside} {_COMPARISONS[function]} {right.inside}", "bool", is_atom=False)
            case "eq", [left, _, *_]:
                listed = ", ".join(each.inside for each in values[1:])
                return Code(f"{left.inside} in [{listed}]", "bool", is_atom=False)
            case (("and" | "or"), [first, *_]):
                joined = f" {function} ".join(each.inside for each in values)
                is_bool = all(each.kind == "bool" for each in values)
                return Code(joined, "bool" if is_bool else "text", is_atom=len(values) == 1 and first.is_atom)
            case "not", [value]:
                return Code(f"not {value.inside}", "bool", is_atom=False)
            case "len", [value]:
                return Code(f"{value.inside} | length", is_atom=False)
            case "slice", [value, start]:
                return Code(f"{value.inside}[{start.text}:]", value.kind)
            case "slice", [value, start, end]:
                return Code(f"{value.inside}[{start.text}:{end.text}]", value.kind)
            case "index", [value, *keys] if keys:
                return Code(value.inside + "".join(f"[{key.text}]" for key in keys), "any")
            case "json", [value]:
                return Code(f"{value.inside} | tojson", is_atom=False)
            case "printf", [_, *rest] if isinstance(arguments[0], Literal):
                return _formatted(str(arguments[0].value), rest)
            case "currentDate", []:
                return Code("strftime_now('%Y-%m-%d')")
        known = function in (*_COMPARISONS, *_OTHER_FUNCTIONS)
        suffix = f" with {len(values)} arguments" if known else ""
        raise refused(f"the function {function}{suffix}")


def _is_slice_from(expression: Expression) -> bool:
    return isinstance(expression, Call) and expression.function == "slice" and len(expression.arguments) == 2


def _last_name(field: Field) -> str:
    return field.names[-1] if field.names else ""


def _printed(code: Code) -> str:
    """``code`` as Go prints it."""
    match code.kind:
        case "text":
            return code.inside
        case "bool":
            return f"('true' if {code.text} else 'false')"
        case "json":
            return f"({code.inside} | tojson)"
        case _:
            raise refused("a list or a whole message as text")


def _formatted(template: str, values: list[Code]) -> Code:
    """``printf`` of a template with nothing but ``%s``, ``%d`` and ``%v`` in it."""
    texts = re.split(r"%[sdv]", template)
    if len(texts) != len(values) + 1 or any("%" in text for text in texts):
        raise refused(f"the function printf with the format {template!r:.60}")
    parts = [_quoted(texts[0])] if texts[0] else []
    for value, text in zip(values, texts[1:], strict=True):
        parts += [_printed(value), *([_quoted(text)] if text else [])]
    return Code(" ~ ".join(parts) or "''", is_atom=len(parts) < 2)


def _output(pending: list[str], indent: str) -> list[str]:
    """One line that writes what is pending, which is empty afterwards."""
    joined = " ~ ".join(pending)
    pending.clear()
    return [f"{indent}{{{{- {joined} }}}}\n"] if joined else []


def _quoted(text: str) -> str:
    """A text as a literal of Jinja."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\r", "\\r")
    return f"'{escaped}'"
