"""The interactive session: entries of a reader in, answers out, conversation and settings kept between them.

Invariants: the conversation alternates between user and assistant and begins with the user, whatever was
interrupted or failed; an error of one answer leaves the session usable.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from nanollama.cli.options import CONTEXT, GENERATION, LOADING
from nanollama.cli.parsers import did_you_mean
from nanollama.cli.reader import Reader, unquoted
from nanollama.cli.remote import Model
from nanollama.cli.run import checked, short_name, show
from nanollama.cli.terminal import Terminal, notices, timing_text
from nanollama.errors import NanollamaError, UsageError
from nanollama.store.parameters import settings_of
from nanollama.types import Message

SETTINGS = {setting.name: setting for setting in GENERATION}
FIXED = tuple(setting.name for setting in (*LOADING, CONTEXT))
"""What is decided when a model is loaded."""

OTHER_NAMES = {"temp": "temperature", "num_predict": "max_tokens", "num_ctx": "n_ctx", "ctx": "n_ctx"}
"""What a setting is called by a flag or by other programs."""


class Repl:
    """A session with a loaded model. Without ``chat`` each entry is completed by itself, as plain text."""

    def __init__(
        self, llm: Model, terminal: Terminal, *, chat: bool, system: str | None, generation: Mapping[str, Any]
    ) -> None:
        self._llm, self._terminal, self._chat = llm, terminal, chat
        self._system = llm.recipe.system if system is None else system
        self._settings = dict(generation)
        own = settings_of(llm.recipe.parameters)
        self._own = {**own.sampling, "stop": own.stop or None, "max_tokens": own.max_tokens}
        self._history: list[Message] = []
        self._leaving = False

    def run(self, read: Reader, first: str | None = None) -> int:
        """Answer ``first`` and then each entry until a person leaves. Returns the exit code."""
        llm, terminal = self._llm, self._terminal
        model = f"{short_name(llm)} | {llm.device} {llm.dtype} | context {llm.n_ctx} tokens"
        terminal.note(f"{model} | /help lists the commands")
        if first is not None:
            self._guard(self._answer, first)
            terminal.space()
        while not self._leaving:
            try:
                entry = read()
            except EOFError:
                break
            except KeyboardInterrupt:
                terminal.note("Ctrl+D or /exit leaves")
                continue
            text, is_quoted = unquoted(entry)
            if text:
                self._guard(self._command if text.startswith("/") and not is_quoted else self._answer, text)
                terminal.space()
        return 0

    def _guard(self, action: Callable[[str], object], text: str) -> None:
        """Run ``action``; its failure is a sentence and not the end of the session."""
        try:
            action(text)
        except NanollamaError as error:
            self._terminal.say(f"error: {error}")
        except MemoryError:
            self._terminal.say(
                "error: not enough memory for this answer: /clear makes the conversation shorter"
            )
        except KeyboardInterrupt:
            self._terminal.say("")

    def _answer(self, text: str) -> bool:
        """Ask the model, and keep both turns or, when there is no answer to keep, neither. Returns which."""
        question = Message("user", checked(text, "the message"))
        prompt = [*self._history, question] if self._chat else text
        system = self._system if self._chat else None
        if self._chat and system is None and self._llm.recipe.system is not None:
            system = ""  # none at all: None would stand for the model's own
        shown = show(partial(self._llm.events, prompt, system=system, **self._settings), self._terminal)
        is_kept = self._chat and (shown.completion is not None or bool(shown.text))
        if is_kept:
            self._history += [question, Message("assistant", shown.text)]
        if shown.completion is None:
            kept = "the partial answer stays in" if shown.text else "nothing is added to"
            self._terminal.note(f"interrupted: {kept} the conversation" if self._chat else "interrupted")
            return is_kept
        self._terminal.note(timing_text(shown.completion.timings))
        for notice in notices(shown.completion, self._llm.n_ctx, self._settings.get("max_tokens")):
            self._terminal.note(notice)
        # What the model no longer sees is not sent again: a notice counts what was dropped since the last.
        del self._history[: shown.completion.dropped_messages]
        return is_kept

    def _command(self, text: str) -> None:
        word, _, rest = text.partition(" ")
        if word not in COMMANDS:
            raise UsageError(
                f"unknown command {word}{did_you_mean(word, COMMANDS)}: /help lists them all, "
                'and """ around a text sends it to the model'
            )
        COMMANDS[word].action(self, rest.strip())

    def help(self, _: str) -> None:
        shown = {command.usage: command.help for command in COMMANDS.values()}
        width = max(map(len, shown))
        for usage, meaning in shown.items():
            self._terminal.say(f"  {usage:{width}}  {meaning}")
        self._terminal.say(
            '\n  """ begins and ends a text of several lines.\n'
            "  Ctrl+C stops an answer, Ctrl+D leaves, the arrow keys go through earlier lines."
        )

    def leave(self, _: str) -> None:
        self._leaving = True

    def clear(self, _: str) -> None:
        self._history.clear()
        self._terminal.say("The conversation is forgotten; the system prompt and the settings stay.")

    def system(self, text: str) -> None:
        if not self._chat:
            raise UsageError("a system prompt needs a chat template, and this session completes plain text")
        if text == "off":
            self._system = None
        elif text:
            self._system = checked(unquoted(text)[0], "the system prompt")
        self._terminal.say("No system prompt." if self._system is None else f"System prompt: {self._system}")

    def set(self, text: str) -> None:
        """Show all settings, or change one; ``parameter`` may be left out. ``/set system`` is ``/system``."""
        what, _, rest = text.partition(" ")
        if what == "system":
            return self.system(rest.strip())
        name, _, value = (rest if what == "parameter" else text).strip().partition(" ")
        name = OTHER_NAMES.get(name, name)
        if not name:
            return self._show_settings()
        if name in FIXED:
            raise UsageError(
                f"{name} is fixed when the model is loaded: start again with --{name.replace('_', '-')}"
            )
        if name not in SETTINGS:
            hint = did_you_mean(name, SETTINGS)
            raise UsageError(f"unknown parameter {name}{hint}: expected one of {', '.join(SETTINGS)}")
        value = value.strip()
        if not value:
            raise UsageError(f"{name} needs a value, or the word default: /set {name} VALUE")
        if value == "default":
            self._settings.pop(name, None)
        else:
            self._settings[name] = SETTINGS[name].read(value)
        self._terminal.say(f"{name} = {self._value(name)}")
        return None

    def _show_settings(self) -> None:
        width = max(map(len, SETTINGS))
        for name in SETTINGS:
            self._terminal.say(f"  {name:{width}}  {self._value(name)}")

    def _value(self, name: str) -> str:
        value = self._settings.get(name)
        if value is None:
            own = self._own.get(name)
            return "default" if own is None else f"{_shown(own)}, the model's own"
        return _shown(value)

    def show(self, _: str) -> None:
        llm = self._llm
        facts = {
            "model": llm.name,
            "from": str(llm.path),
            "context": f"{llm.n_ctx} tokens",
            "device": f"{llm.device} {llm.dtype}",
            "template": "yes" if llm.has_template else "none: plain completion",
            "messages": str(len(self._history)),
        }
        if llm.recipe.messages:
            facts["messages"] += f", after {len(llm.recipe.messages)} of the model's own"
        if self._chat and self._system is not None:
            facts["system"] = self._system
        facts |= {name: f"{_shown(given)}, the model's own" for name, given in llm.recipe.parameters.items()}
        width = max(map(len, facts))
        for name, value in facts.items():
            self._terminal.say(f"  {name:{width}}  {value}")

    def retry(self, _: str) -> None:
        if not self._history:
            raise UsageError("there is no answer to try again")
        earlier = self._history.copy()
        question = self._history[-2].content
        del self._history[-2:]
        is_kept = False
        try:
            is_kept = self._answer(question)
        finally:
            if not is_kept:
                self._history = earlier


def _shown(value: Any) -> str:
    return ", ".join(map(repr, value)) if isinstance(value, tuple) else str(value)


@dataclass(frozen=True, slots=True)
class Command:
    usage: str
    help: str
    action: Callable[[Repl, str], None]


_HELP = Command("/help, /?", "list the commands", Repl.help)
_EXIT = Command("/exit, /bye", "leave (also Ctrl+D)", Repl.leave)
COMMANDS = {
    "/help": _HELP,
    "/?": _HELP,
    "/clear": Command("/clear", "forget the conversation", Repl.clear),
    "/retry": Command("/retry", "answer the last message again", Repl.retry),
    "/system": Command("/system [TEXT | off]", "show, set or remove the system prompt", Repl.system),
    "/set": Command("/set [NAME VALUE]", "show all settings, or change one (VALUE default resets)", Repl.set),
    "/show": Command("/show", "describe the model and the conversation", Repl.show),
    "/exit": _EXIT,
    "/bye": _EXIT,
}
