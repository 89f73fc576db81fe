"""Modelfiles, Ollama's recipe language: text in, a Modelfile out, and back.

The language is what Ollama's parser accepts: instructions in any case and order, comments only where a line
starts, values to the end of the line or in ``"…"`` and ``\"""…\"""``, without escapes. ``parse`` undoes
``modelfile_text``. Unlike Ollama, no character of a value is dropped.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nanollama.errors import TemplateError, UnsupportedError, UsageError
from nanollama.store.go_templates import jinja_for
from nanollama.store.parameters import DEPRECATED, MAX_STOPS, read_parameter
from nanollama.store.recipe import ParameterValue, Recipe
from nanollama.types import Message

if TYPE_CHECKING:
    from nanollama.store.registry import Record

INSTRUCTIONS = ("FROM", "PARAMETER", "TEMPLATE", "SYSTEM", "ADAPTER", "LICENSE", "MESSAGE", "REQUIRES")
ROLES = ("system", "user", "assistant")

UNSUPPORTED = {
    "DRAFT": "a second model that drafts answers is not supported",
    "RENDERER": "it names code inside Ollama; the checkpoint's own template does its work",
    "PARSER": "it names code inside Ollama, which reads tool calls and reasoning out of answers",
}
"""Instructions of Ollama that have no meaning here -> why."""

_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
"""What Ollama trims from a value: ``unicode.IsSpace`` of Go."""

_BETWEEN = re.compile(r"[ \t\r\n]*")
_BLANKS = re.compile(r"[ \t]*")
_WORD = re.compile(r"[^ \t\r\n]*")
_LINE = re.compile(r"[^\r\n]*")
_LINE_END = re.compile(r"\r\n|\r|\n")
_VERSION = re.compile(r"v?[0-9]+\.[0-9]+\.[0-9]+(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Modelfile:
    """A base and what is added to it. ``warnings`` are sentences about what was left out."""

    from_: str
    recipe: Recipe = field(default_factory=Recipe)
    warnings: tuple[str, ...] = field(default=(), compare=False)


def decode(data: bytes) -> str:
    """The text of a Modelfile: UTF-8, or UTF-16 with a byte order mark.

    Raises:
        UsageError: it is neither.
    """
    is_utf16 = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        return data.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"the Modelfile is not text: expected UTF-8, and byte {error.start} is 0x{data[error.start]:02x}"
        ) from None


def parse(text: str) -> Modelfile:
    """The Modelfile that ``text`` spells. Go templates become Jinja.

    Raises:
        UsageError: it is not a Modelfile; the sentence names the line.
        UnsupportedError: an instruction or a template construct that there is no equivalent for.
        TemplateError: a malformed Go template.
    """
    draft = _Draft()
    for line, instruction, value in _instructions(text.removeprefix("\ufeff")):
        try:
            draft.take(instruction, value)
        except (UsageError, UnsupportedError, TemplateError) as error:
            raise type(error)(f"Modelfile, line {line}: {error}") from None
    if draft.from_ is None:
        raise UsageError("the Modelfile has no FROM line: add one, as in FROM smollm2")
    recipe = Recipe(
        template=draft.texts.get("TEMPLATE"),
        system=draft.texts.get("SYSTEM"),
        parameters=draft.parameters,
        messages=tuple(draft.messages),
        licences=tuple(draft.licences),
        adapters=tuple(draft.adapters),
        requires=draft.texts.get("REQUIRES"),
    )
    return Modelfile(draft.from_, recipe, tuple(draft.warnings))


class _Draft:
    """What the instructions so far add up to."""

    def __init__(self) -> None:
        self.from_: str | None = None
        self.texts: dict[str, str] = {}
        self.parameters: dict[str, ParameterValue] = {}
        self.messages: list[Message] = []
        self.licences: list[str] = []
        self.adapters: list[str] = []
        self.warnings: list[str] = []

    def take(self, instruction: str, value: str) -> None:
        match instruction:
            case "FROM":
                self._from(value)
            case "PARAMETER":
                self._parameter(*_split(value))
            case "MESSAGE":
                role, content = _split(value)
                if role not in ROLES:
                    raise UsageError(f"a message's role is {role!r:.40}; expected {', '.join(ROLES)}")
                self.messages.append(Message(role, _unquoted(content)))
            case "LICENSE":
                self.licences.append(_unquoted(value))
            case "ADAPTER":
                if self.adapters:
                    raise UnsupportedError("there is a second ADAPTER, and a model takes one")
                self.adapters.append(_filled("ADAPTER", _unquoted(value), "a path"))
            case "REQUIRES":
                version = _unquoted(value)
                if not _VERSION.fullmatch(version):
                    raise UsageError(f"REQUIRES is {version!r:.40}; expected a version such as 0.14.0")
                self.texts[instruction] = version
            case "TEMPLATE":
                self.texts[instruction] = jinja_for(_unquoted(value))
            case _:
                self.texts[instruction] = _unquoted(value)

    def _from(self, value: str) -> None:
        if self.from_ is not None:
            raise UnsupportedError("there is a second FROM, and a model is made from one base")
        self.from_ = _filled("FROM", _unquoted(value), "a name or a path")

    def _parameter(self, name: str, quoted: str) -> None:
        if name in DEPRECATED:
            self.warnings.append(
                f"the parameter {name} is deprecated and left out: it has no effect any more"
            )
            return
        value = read_parameter(name, _unquoted(quoted))
        if isinstance(value, tuple):
            before = self.parameters.get(name, ())
            assert isinstance(before, tuple)  # a parameter has one type
            value = (*before, *value)
            if len(value) > MAX_STOPS:
                raise UsageError(f"there are more than {MAX_STOPS} texts for {name}: leave some out")
        self.parameters[name] = value


def _instructions(text: str) -> Iterator[tuple[int, str, str]]:
    """Line number, instruction in capitals and value as written, of each instruction in turn."""
    at, counted, line = 0, 0, 1
    while True:
        at = _end(_BETWEEN, text, at)
        if at == len(text):
            return
        line += len(_LINE_END.findall(text, counted, at))
        counted = at
        if text[at] == "#":
            at = _end(_LINE, text, at)
            continue
        start = _end(_WORD, text, at)
        name = _instruction(text[at:start], line)
        if text[start : start + 1] not in (" ", "\t"):
            raise UsageError(f"Modelfile, line {line}: {name} has no value: expected one on the same line")
        at = _value_end(text, start, name, line)
        yield line, name, text[start:at].strip(_SPACE)


def _instruction(word: str, line: int) -> str:
    name = word.upper()
    if name in UNSUPPORTED:
        raise UnsupportedError(
            f"Modelfile, line {line}: {name} can't be honoured, since {UNSUPPORTED[name]}; remove the line"
        )
    if name not in INSTRUCTIONS:
        raise UsageError(
            f"Modelfile, line {line}: {word!r:.60} is not an instruction; expected one of "
            + ", ".join(INSTRUCTIONS)
        )
    return name


def _value_end(text: str, start: int, name: str, line: int) -> int:
    """Where the value that begins at ``start`` ends: at the first line end that is not inside its quotes."""
    if name in ("PARAMETER", "MESSAGE"):  # a word comes first, and quotes begin after it
        start = _end(_WORD, text, _end(_BLANKS, text, start))
    end = _end(_LINE, text, start)
    quote = _opening(text[start:end].strip(_SPACE))
    opening = line_start = text.find(quote, start)
    while quote and not _is_closed(
        text, opening, line_start + len(text[line_start:end].rstrip(_SPACE)), quote
    ):
        if end == len(text):
            raise UsageError(
                f"Modelfile, line {line}: the text after {name} begins with {quote} and doesn't end: "
                f"expected {quote} at the end of a line"
            )
        line_start = end + 1
        end = _end(_LINE, text, line_start)
    return end


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    """Where the match of ``pattern``, which matches everywhere, ends."""
    found = pattern.match(text, at)
    assert found is not None
    return found.end()


def _opening(value: str) -> str:
    """The quotes that ``value`` begins with, if any."""
    return '"""' if value.startswith('"""') else '"' if value.startswith('"') else ""


def _is_closed(text: str, opening: int, end: int, quote: str) -> bool:
    """Whether the quotes at ``opening`` are closed just before ``end``."""
    return end - opening >= 2 * len(quote) and text.endswith(quote, opening, end)


def _unquoted(value: str) -> str:
    quote = _opening(value)
    return value[len(quote) : -len(quote)] if quote else value


def _split(value: str) -> tuple[str, str]:
    """The first word of ``value``, and the rest without the blanks around it."""
    end = _end(_WORD, value, 0)
    word, rest = value[:end], value[end:]
    if not rest:
        raise UsageError(f"{word!r:.60} has no value: expected one after it on the same line")
    return word, rest.strip(_SPACE)


def _filled(instruction: str, value: str, what: str) -> str:
    if not value:
        raise UsageError(f"{instruction} is empty; expected {what}")
    return value


def modelfile_text(modelfile: Modelfile) -> str:
    """A Modelfile that :func:`parse` reads back.

    Raises:
        UsageError: a text in it has no form in the language, which has no escapes.
    """
    recipe = modelfile.recipe
    lines = [f"FROM {_quoted('FROM', modelfile.from_)}"]
    if recipe.template is not None:
        lines.append(f"TEMPLATE {_quoted('TEMPLATE', recipe.template)}")
    if recipe.system is not None:
        lines.append(f"SYSTEM {_quoted('SYSTEM', recipe.system)}")
    for name, value in recipe.parameters.items():
        for each in value if isinstance(value, tuple) else (value,):
            lines.append(f"PARAMETER {name} {_quoted(name, _plain(each))}")
    lines += [f"ADAPTER {_quoted('ADAPTER', path)}" for path in recipe.adapters]
    lines += [f"MESSAGE {m.role} {_quoted('MESSAGE', m.content)}" for m in recipe.messages]
    lines += [f"LICENSE {_quoted('LICENSE', text)}" for text in recipe.licences]
    if recipe.requires is not None:
        lines.append(f"REQUIRES {recipe.requires}")
    return "\n".join(lines) + "\n"


def modelfile_of(record: "Record") -> str:
    """A Modelfile that creates the model of ``record`` again, as ``nanollama show --modelfile`` prints it.

    Raises:
        UsageError: a text in it has no form in the language, which has no escapes.
    """
    name = str(record.name)
    header = (
        f"# The recipe of {name}, as 'nanollama show --modelfile' prints it.\n"
        f"# To begin a new one with this model, write FROM {name} instead.\n"
    )
    return header + modelfile_text(Modelfile(str(record.path), record.recipe))


def _plain(value: ParameterValue) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _quoted(what: str, value: str) -> str:
    """The shortest form of ``value`` that reads back as it is."""
    forms = [value] if value else []
    forms += [f'"{value}"', f'"""{value}"""']
    if "\n" in value:
        forms.reverse()  # a block looks better in triple quotes
    for form in forms:
        try:
            end = _value_end(form, 0, "", 0)
        except UsageError:  # its quotes are not closed
            continue
        if end == len(form) and _unquoted(form.strip(_SPACE)) == value:
            return form
    raise UsageError(
        f"{what} has a text that a Modelfile can't express, since a line inside it ends in quotation marks: "
        f"{value!r:.60}"
    )
