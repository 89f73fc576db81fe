"""Chat templates: in come messages, out comes the prompt text with what came from outside marked.

The text is byte for byte what transformers' ``apply_chat_template`` renders. A template is untrusted code,
run in the sandbox of `sandbox.py` within a time and an output limit.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from nanollama.errors import TemplateError, UsageError
from nanollama.text.budget import Meter, run_within
from nanollama.text.literal import mark_literal
from nanollama.types import Message, Prompt

T = TypeVar("T")

MAX_SOURCE_CHARS = 1 << 16
"""Longest template source, about twice the longest in use. Compiling it can take a second."""

_MAX_REASON_CHARS = 1000


class ChatTemplate:
    """A compiled chat template. Rendering is thread-safe.

    ``time_limit_s`` is the wall time of one rendering (compiling may take twice that), ``max_chars`` the
    longest text in characters that a rendering may make, intermediate ones included.

    Raises:
        TemplateError: the source is not a template.
    """

    def __init__(
        self,
        source: str,
        *,
        bos_token: str = "",
        eos_token: str = "",
        time_limit_s: float = 1.0,
        max_chars: int = 4 << 20,
    ) -> None:
        # Jinja takes 80 ms to import: only who has a template pays.
        from nanollama.text.sandbox import BudgetedSandbox

        if len(source) > MAX_SOURCE_CHARS:
            raise TemplateError(
                f"The model's chat template has {len(source):,} characters; at most {MAX_SOURCE_CHARS:,} are "
                "accepted."
            )
        self.source = source
        self._bos_token = bos_token
        self._special_tokens = {
            name: text for name, text in (("bos_token", bos_token), ("eos_token", eos_token)) if text
        }
        self._time_limit_s = time_limit_s
        self._sandbox = BudgetedSandbox(Meter(max_chars))
        self._compiled = self._bounded(2 * time_limit_s, lambda: self._sandbox.from_string(source))

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        control_tokens: Iterable[str] = (),
        **extra: Any,
    ) -> Prompt:
        """The prompt for ``messages``. Only the template itself may write ``control_tokens``.

        ``extra`` are further template variables (``tools``, ``documents``, ``enable_thinking``, …).

        Raises:
            UsageError: ``extra`` names a variable that belongs to the model.
            TemplateError: the template fails, refuses the conversation or overruns its budget.
        """
        if shadowed := sorted(extra.keys() & {"bos_token", "eos_token"}):
            raise UsageError(
                f"The template variable {shadowed[0]} belongs to the model and can't be set by a request."
            )
        variables = {
            "tools": None,
            "documents": None,
            **extra,
            "messages": [_turn(message) for message in messages],
        }

        def render(outside: Callable[[], dict[str, Any]]) -> str:
            return self._bounded(self._time_limit_s, lambda: self._run(outside(), add_generation_prompt))

        text = render(lambda: variables)
        literal = mark_literal(text, variables, control_tokens, render)
        starts_literal = bool(literal) and literal[0][0] < len(self._bos_token)
        adds_bos = bool(self._bos_token) and text.startswith(self._bos_token) and not starts_literal
        return Prompt(text=text, literal=literal, adds_bos=adds_bos)

    def _run(self, outside: dict[str, Any], add_generation_prompt: bool) -> str:
        pieces, length = [], 0
        for piece in self._compiled.generate(
            **self._special_tokens, **outside, add_generation_prompt=add_generation_prompt
        ):
            length += len(piece)
            self._sandbox.meter.expect(length)
            pieces.append(piece)
        return "".join(pieces)

    def _bounded(self, limit_s: float, job: Callable[[], T]) -> T:
        """The result of ``job``, or the one sentence that says why there is none."""
        try:
            return run_within(limit_s, job)
        except TemplateError:
            raise
        except Exception as error:
            reason = _explain(error)
        # Raised here, the error does not keep the template's variables alive, which may be large.
        raise TemplateError(reason)


def _turn(message: Message) -> dict[str, str]:
    turn = {"role": message.role, "content": message.content}
    return turn if message.name is None else {**turn, "name": message.name}


def _explain(error: Exception) -> str:
    """What went wrong in a template, by the kind of ``error``; a subclass stands before its base."""
    from jinja2 import exceptions as jinja

    said = str(error)
    said = said if len(said) <= _MAX_REASON_CHARS else f"{said[:_MAX_REASON_CHARS]}…"
    stem = said.rstrip(".")
    match error:
        case jinja.TemplateSyntaxError():
            return f"The model's chat template is not valid Jinja: {stem} (line {error.lineno})."
        case jinja.SecurityError():
            return f"The chat template did what the sandbox forbids: {stem}."
        case jinja.TemplateRuntimeError():
            return f"The chat template failed on this conversation: {stem}."
        case jinja.TemplateError():
            return f"The chat template refuses this conversation: {said}"
        case RecursionError() | MemoryError() | SyntaxError():
            return "The chat template is nested too deeply, or calls itself without end."
        case _:
            return f"The chat template failed on this conversation: {type(error).__name__}: {stem}."
