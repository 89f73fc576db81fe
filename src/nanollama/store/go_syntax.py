"""The syntax of Go's text/template, as far as Ollama's chat templates use it: source in, a tree out.

Constructs outside that part are refused by name. The tree says what is written, not what it means; meaning is
given to it in `go_templates.py`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from nanollama.errors import TemplateError, UnsupportedError

MAX_CHARS = 1 << 16
"""Longest template; no longer one would be rendered."""

MAX_DEPTH = 50
_TOO_DEEP = f"more than {MAX_DEPTH} blocks and brackets in one another"

Base = str  # "." for what is looked at, "$" for the whole, "$name" for a variable


@dataclass(frozen=True, slots=True)
class Literal:
    value: str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Field:
    """``base.first.second``; without names it is the base itself."""

    base: "Base | Call | Literal"
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Call:
    function: str
    arguments: "tuple[Expression, ...]"


Expression = Literal | Field | Call


@dataclass(frozen=True, slots=True)
class Text:
    text: str


@dataclass(frozen=True, slots=True)
class Output:
    value: Expression


@dataclass(frozen=True, slots=True)
class Assign:
    """``$name := value``, or ``$name = value`` where the variable exists already."""

    name: str
    value: Expression
    is_new: bool


@dataclass(frozen=True, slots=True)
class If:
    condition: Expression
    body: "Body"
    otherwise: "Body"


@dataclass(frozen=True, slots=True)
class With:
    value: Expression
    body: "Body"
    otherwise: "Body"


@dataclass(frozen=True, slots=True)
class Range:
    """A loop over ``value``. ``names`` are the variables of the item, or of index and item."""

    names: tuple[str, ...]
    value: Expression
    body: "Body"
    otherwise: "Body"


@dataclass(frozen=True, slots=True)
class Jump:
    word: str  # break or continue


Statement = Text | Output | Assign | If | With | Range | Jump
Body = tuple[Statement, ...]


@dataclass(frozen=True, slots=True)
class Token:
    kind: str
    text: str
    spaced: bool


@dataclass(frozen=True, slots=True)
class Action:
    """What stands between two braces. ``line`` counts from 1."""

    tokens: tuple[Token, ...]
    line: int


_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n]+)|(?P<string>"(?:[^"\\\n]|\\.)*"|`[^`]*`)|(?P<assign>:?=)|(?P<mark>[|(),])
    |(?P<number>[+-]?[0-9]+(?:\.[0-9]+)?(?![\w.]))|(?P<variable>\$\w*)|(?P<field>\.[A-Za-z_]\w*)|(?P<dot>\.)
    |(?P<word>[A-Za-z_]\w*)""",
    re.VERBOSE | re.ASCII,
)
_BLANK = " \t\r\n"
_TRIMMING = re.compile(r"\{\{-[ \t\r\n]")
_COMMENT = re.compile(r"\{\{(-[ \t\r\n])?/\*.*?\*/([ \t\r\n]+-)?\}\}", re.DOTALL)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", '"': '"', "a": "\a", "b": "\b", "f": "\f", "v": "\v"}
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.DOTALL)
_KEYWORDS = ("if", "else", "end", "range", "with", "break", "continue", "define", "block", "template")


def parse_template(source: str) -> Body:
    """The tree of a Go template.

    Raises:
        TemplateError: it is not one.
        UnsupportedError: it uses a construct outside the part that chat templates use, which is named.
    """
    return _Parser(list(_pieces(source))).template()


def _pieces(source: str) -> Iterator[str | Action]:
    """Texts and actions in turn, with what the trim marks take away already gone."""
    at, trims = 0, False
    while True:
        start = source.find("{{", at)
        text = source[at:] if start < 0 else source[at:start]
        trims_before = start >= 0 and _TRIMMING.match(source, start) is not None
        if trims:
            text = text.lstrip(_BLANK)
        if trims_before:
            text = text.rstrip(_BLANK)
        if text:
            yield text
        if start < 0:
            return
        line = source.count("\n", 0, start) + 1
        if comment := _COMMENT.match(source, start):
            at, trims = comment.end(), comment[2] is not None
            continue
        tokens, at, trims = _tokens(source, start + (3 if trims_before else 2), line)
        yield Action(tokens, line)


def _tokens(source: str, at: int, line: int) -> tuple[tuple[Token, ...], int, bool]:
    """The tokens of an action, where it ends, and whether it trims the text after it."""
    tokens: list[Token] = []
    spaced = False
    while True:
        if source.startswith("}}", at):
            return tuple(tokens), at + 2, False
        if spaced and source.startswith("-}}", at):
            return tuple(tokens), at + 3, True
        found = _TOKEN.match(source, at)
        if found is None:
            rest = source[at : at + 20]
            said = "an action is not closed with }}" if not rest else f"{rest!r} makes no sense in an action"
            raise TemplateError(f"the Go template is malformed in line {line}: {said}")
        at = found.end()
        assert found.lastgroup is not None  # every alternative is a group
        if found.lastgroup != "space":
            tokens.append(Token(found.lastgroup, found[0], spaced))
        spaced = found.lastgroup == "space"


class _Parser:
    """Recursive descent over pieces, and inside an action over its tokens."""

    def __init__(self, pieces: list[str | Action]) -> None:
        self._pieces = pieces[::-1]
        self._tokens: list[Token] = []
        self._line = 1
        self._depth = 0

    def template(self) -> Body:
        body, ending = self._body()
        if ending:
            raise self._malformed(f"{{{{ {ending} }}}} without a beginning")
        return body

    def _body(self) -> tuple[Body, str]:
        """Statements up to an ``end`` or ``else``, whose word comes with them; its tokens are left."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._refused(_TOO_DEEP)
        statements: list[Statement] = []
        ending = ""
        while self._pieces and not ending:
            piece = self._pieces.pop()
            if isinstance(piece, str):
                statements.append(Text(piece))
                continue
            self._tokens, self._line = list(piece.tokens[::-1]), piece.line
            word = self._peek().text if self._peek().kind == "word" else ""
            if word in ("end", "else"):
                self._tokens.pop()
                ending = word
            else:
                statements.append(self._statement(word if word in _KEYWORDS else ""))
        self._depth -= 1
        return tuple(statements), ending

    def _statement(self, keyword: str) -> Statement:
        if keyword:
            self._tokens.pop()
        match keyword:
            case "if" | "with":
                return self._branch(keyword)
            case "range":
                return self._range()
            case "break" | "continue":
                self._finish()
                return Jump(keyword)
            case "":
                return self._action()
            case _:
                raise self._refused(f"{{{{ {keyword} }}}}")

    def _action(self) -> Statement:
        if (
            len(self._tokens) >= 2
            and self._tokens[-1].kind == "variable"
            and self._tokens[-2].kind == "assign"
        ):
            name, operator = self._tokens.pop().text, self._tokens.pop().text
            return Assign(name, self._whole_pipeline(), is_new=operator == ":=")
        return Output(self._whole_pipeline())

    def _branch(self, keyword: str) -> Statement:
        if len(self._tokens) >= 2 and self._tokens[-2].kind == "assign":
            raise self._refused(f"a variable declared by {{{{ {keyword} }}}}")
        condition = self._whole_pipeline()
        body, ending = self._body()
        otherwise = self._otherwise(keyword, ending)
        return (If if keyword == "if" else With)(condition, body, otherwise)

    def _otherwise(self, keyword: str, ending: str) -> Body:
        """What follows ``{{ else }}``, up to the ``{{ end }}`` of the block."""
        if not ending:
            raise self._malformed(f"{{{{ {keyword} }}}} has no {{{{ end }}}}")
        if ending == "end":
            self._finish()
            return ()
        if self._tokens and self._tokens[-1].text in ("if", "with") and keyword != "range":
            chained = self._tokens.pop().text
            self._depth += 1
            branch = self._branch(chained)
            self._depth -= 1
            return (branch,)
        self._finish()
        body, ending = self._body()
        if ending != "end":
            raise self._malformed(f"{{{{ {keyword} }}}} has no {{{{ end }}}}")
        self._finish()
        return body

    def _range(self) -> Statement:
        names: list[str] = []
        if any(token.kind == "assign" for token in self._tokens):
            declared = [self._tokens.pop()]
            while declared[-1].kind != "assign":
                declared.append(self._tokens.pop())
            kinds = [token.text if token.kind == "mark" else token.kind for token in declared[:-1]]
            if kinds not in (["variable"], ["variable", ",", "variable"]):
                raise self._malformed("{{ range }} declares one variable, or two with a comma between them")
            if declared[-1].text != ":=":
                raise self._refused("{{ range }} with variables that exist already")
            names = [token.text for token in declared if token.kind == "variable"]
        value = self._whole_pipeline()
        body, ending = self._body()
        return Range(tuple(names), value, body, self._otherwise("range", ending))

    def _whole_pipeline(self) -> Expression:
        value = self._pipeline()
        self._finish()
        return value

    def _pipeline(self) -> Expression:
        """``command | command``: what comes before is the last argument of what follows."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._refused(_TOO_DEEP)
        value = self._command(None)
        while self._peek().text == "|":
            self._tokens.pop()
            value = self._command(value)
        self._depth -= 1
        return value

    def _command(self, piped: Expression | None) -> Expression:
        token = self._peek()
        if token.kind == "word" and token.text not in ("true", "false", "nil"):
            self._tokens.pop()
            if token.text in _KEYWORDS:
                raise self._malformed(f"unexpected {token.text!r} in an expression")
            arguments = []
            while self._peek().kind != "end" and self._peek().text not in ("|", ")"):
                arguments.append(self._operand())
            return Call(token.text, (*arguments, *(() if piped is None else (piped,))))
        value = self._operand()
        if piped is not None or (self._peek().kind != "end" and self._peek().text not in ("|", ")")):
            raise self._refused(f"the call of something that is no function, near {token.text!r:.40}")
        return value

    def _operand(self) -> Expression:
        token = self._peek()
        if token.kind == "end":
            raise self._malformed("an action is incomplete")
        self._tokens.pop()
        match token.kind:
            case "string":
                return Literal(_string(token.text))
            case "number":
                return Literal(float(token.text) if "." in token.text else int(token.text))
            case "field":
                return Field(".", (token.text[1:], *self._names()))
            case "dot":
                return Field(".", self._names())
            case "variable":
                return Field(token.text, self._names())
            case "word" if token.text in ("true", "false", "nil"):
                return Literal({"true": True, "false": False, "nil": None}[token.text])
            case "word":
                return Call(token.text, ())
        if token.text != "(":
            raise self._malformed(f"unexpected {token.text!r} in an expression")
        value = self._pipeline()
        if self._peek().text != ")":
            raise self._malformed("a bracket is not closed")
        self._tokens.pop()
        names = self._names()
        if not names:
            return value
        return Field(value.base, value.names + names) if isinstance(value, Field) else Field(value, names)

    def _names(self) -> tuple[str, ...]:
        names = []
        while self._peek().kind == "field" and not self._peek().spaced:
            names.append(self._tokens.pop().text[1:])
        return tuple(names)

    def _peek(self) -> Token:
        return self._tokens[-1] if self._tokens else Token("end", "", spaced=False)

    def _finish(self) -> None:
        if self._tokens:
            raise self._malformed(f"unexpected {self._peek().text!r:.40}")

    def _malformed(self, what: str) -> TemplateError:
        return TemplateError(f"the Go template is malformed in line {self._line}: {what}")

    def _refused(self, what: str) -> UnsupportedError:
        return refused(f"{what} (line {self._line})")


def refused(construct: str) -> UnsupportedError:
    """The error for a construct that there is no translation of."""
    return UnsupportedError(
        f"the Go template uses {construct}, which can't be translated: write the template in Jinja, or leave "
        "TEMPLATE out to use the model's own"
    )


def _string(quoted: str) -> str:
    if quoted[0] == "`":
        return quoted[1:-1]

    def plain(escape: re.Match[str]) -> str:
        digits = escape[1] or escape[2] or escape[3]
        if digits:
            number = int(digits, 16)
            if number > 0x10FFFF or 0xD800 <= number < 0xE000:
                raise TemplateError(f"the Go template has an escape that is no character: {escape[0]}")
            return chr(number)
        if escape[4] not in _ESCAPES:
            raise TemplateError(f"the Go template has an unknown escape: {escape[0]!r}")
        return _ESCAPES[escape[4]]

    return _ESCAPE.sub(plain, quoted[1:-1])
