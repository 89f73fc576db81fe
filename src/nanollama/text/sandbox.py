"""Jinja for templates that nobody has read: in comes source, out comes a template that can only make text.

The language is that of Hugging Face chat templates. Jinja's immutable sandbox keeps templates from the
interpreter; the `Meter` keeps them from its memory. Whatever prints, compares, hashes or repeats a value
weighs it first, and whatever makes one counts it afterwards. Built-in types show only the methods of a table,
and only filters of a table exist.

This module imports jinja2, so it is imported when the first template is compiled. Source of the language:
``apply_chat_template`` of transformers 5.17 (``utils/chat_template_utils.py``).
"""

import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.visitor import NodeTransformer
from markupsafe import Markup

from nanollama.text import guards
from nanollama.text.budget import Meter

_MAX_INT_BITS = 1 << 14  # about as many as Python agrees to print

_WEIGHED = "weighed before use"
_COUNTED = "counted when made"
_SPREAD = "spread into arguments"
"""Names of three internal filters: the blanks keep templates from writing them."""


class BudgetedSandbox(ImmutableSandboxedEnvironment):
    """Environment whose templates are limited by ``meter``. Compile and render inside `budget.run_within`."""

    def __init__(self, meter: Meter) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_GenerationTag, loopcontrols],
            finalize=self._weighed,
        )
        self.meter = meter
        self._guards = guards.Guards(meter)
        filters: dict[str, Any] = self.filters
        tests: dict[str, Any] = self.tests
        self.filters = {name: self._guards.filter(name, filters[name]) for name in guards.FILTER_NAMES}
        self.filters["tojson"] = self._guards.tojson
        self.filters[_WEIGHED] = guards.unfolded(self._weighed)
        self.filters[_SPREAD] = guards.unfolded(self._guards.spread)
        self.filters[_COUNTED] = guards.unfolded(meter.made)
        self.tests = {name: self._guards.test(name, test) for name, test in tests.items()}
        del self.globals["lipsum"]
        self.globals["raise_exception"] = guards.raise_exception
        self.globals["strftime_now"] = guards.strftime_now

    # Operators listed here go through call_binop and are never computed while compiling.
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str):
            self._guards.check_printf(left, right)
        elif operator == "*":
            self._check_product(left, right)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            self._check_bits(left.bit_length() * abs(right))
        elif operator == "+" and isinstance(left, str) and isinstance(right, str):
            self.meter.expect(len(left) + len(right))
        return self.meter.made(super().call_binop(context, operator, left, right))

    def _check_product(self, left: Any, right: Any) -> None:
        if isinstance(left, int) and isinstance(right, int):
            self._check_bits(left.bit_length() + right.bit_length())
            return
        repeated, count = (right, left) if isinstance(left, int) else (left, right)
        if isinstance(count, int) and isinstance(repeated, (str, list, tuple)):
            self.meter.expect(len(repeated) * count)

    def _check_bits(self, bits: int) -> None:
        if bits > _MAX_INT_BITS:
            raise SecurityError(f"a whole number of {bits:,} bits is over the limit of {_MAX_INT_BITS:,}")

    def concat(self, parts: Iterable[str]) -> str:
        pieces = list(parts)
        self.meter.expect(sum(map(len, pieces)))
        return self.meter.made("".join(pieces))

    def getitem(self, obj: Any, argument: Any) -> Any:
        return super().getitem(obj, self._weighed(argument))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return super().is_safe_attribute(obj, attr, value) and guards.is_allowed_attribute(obj, attr)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        if super().wrap_str_format(value) is None:
            return None
        template = value.__self__
        if isinstance(template, Markup):
            raise SecurityError("format of text marked safe is not supported")
        formatter = _MeteredFormatter(self)
        if value.__name__ == "format_map":
            return lambda mapping: formatter.vformat(template, (), mapping)
        return lambda *args, **kwargs: formatter.vformat(template, args, kwargs)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        # Jinja's own signature: the underscores leave every keyword to the template.
        if isinstance(__obj, (Macro, LoopContext)):
            return super().call(__context, __obj, *args, **kwargs)
        for argument in chain(args, kwargs.values()):
            __self._weighed(argument)
        if isinstance(__obj, types.BuiltinMethodType):
            args = __self._guards.arguments(__obj, args)
        return __self.meter.made(
            super().call(__context, __obj, *args, **kwargs), each=guards.SMALL_STRING_BYTES
        )

    def _weighed(self, value: Any) -> Any:
        self.meter.weigh(value)
        return value

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        return _Metering().visit(super()._parse(source, name, filename))  # type: ignore[no-any-return]


class _Metering(NodeTransformer):
    """Puts the meter around what the compiled template does without asking its environment."""

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = _apply(_WEIGHED, node.expr)
        for operand in node.ops:
            operand.expr = _apply(_WEIGHED, operand.expr)
        return node

    def visit_Call(self, node: nodes.Call) -> nodes.Node:
        self.generic_visit(node)
        if node.dyn_args is not None:
            node.dyn_args = _apply(_SPREAD, node.dyn_args)
        return node

    visit_Filter = visit_Test = visit_Call  # which take a list of arguments in the same way

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [_apply(_COUNTED, _apply(_WEIGHED, part)) for part in node.nodes]
        return _apply(_COUNTED, node)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _apply(_COUNTED, node) if isinstance(node.arg, nodes.Slice) else node

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        for pair in node.items:
            pair.key = _apply(_WEIGHED, pair.key)
        return _apply(_COUNTED, node)

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return node if _is_plain(node) else _apply(_COUNTED, node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _apply(_COUNTED, node) if node.ctx == "load" and not _is_plain(node) else node


def _apply(name: str, node: nodes.Expr) -> nodes.Expr:
    if _is_plain(node):
        return node
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _is_plain(node: nodes.Node) -> bool:
    """Whether the node is a constant as it stands in the source, whose size the source bounds."""
    if isinstance(node, (nodes.List, nodes.Tuple)):
        return len(node.items) < 100 and all(isinstance(item, nodes.Const) for item in node.items)
    return isinstance(node, nodes.Const)


class _MeteredFormatter(SandboxedFormatter):
    """``str.format`` whose widths and results are counted."""

    def __init__(self, env: BudgetedSandbox) -> None:
        super().__init__(env)
        self._meter = env.meter

    def format_field(self, value: Any, format_spec: str) -> Any:
        self._meter.expect(self._meter.weigh(value) + guards.widths(format_spec))
        return self._meter.made(super().format_field(value, format_spec))

    def convert_field(self, value: Any, conversion: Any) -> Any:
        self._meter.weigh(value)
        return super().convert_field(value, conversion)

    def vformat(self, format_string: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        return self._meter.made(super().vformat(format_string, args, kwargs))


class _GenerationTag(Extension):
    """``{% generation %}``: marks what the model wrote, for training. Here its body is rendered, no more."""

    tags = {"generation"}  # noqa: RUF012  # Jinja reads it as declared here

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)
