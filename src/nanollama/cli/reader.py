"""Where a session's entries come from: a keyboard with editing and history, or any other input.

A reader is a function without arguments that returns an entry, raises ``KeyboardInterrupt`` for Ctrl+C and
``EOFError`` at the end. An entry is one line, or all lines between triple quotes.
"""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nanollama.cli.terminal import Terminal
from nanollama.errors import UsageError

if TYPE_CHECKING:
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings

Reader = Callable[[], str]

NO_HISTORY = ("NANOLLAMA_NOHISTORY", "OLLAMA_NOHISTORY")
"""Variables that keep a session from writing down what was typed."""

_NO = ("", "0", "false", "no", "off")

PROMPT, CONTINUATION = ">>> ", "... "
QUOTES = '"""'


def is_open(text: str) -> bool:
    """Whether ``text`` begins a block of lines that is not yet closed."""
    text = text.strip()
    return text.startswith(QUOTES) and not (text.endswith(QUOTES) and len(text) >= 2 * len(QUOTES))


def unquoted(text: str) -> tuple[str, bool]:
    """The entry that was meant, and whether it was quoted, in which case it is never a command."""
    inner = text.strip()
    if not inner.startswith(QUOTES):
        return text.strip(), False
    return inner.removeprefix(QUOTES).removesuffix(QUOTES).strip("\n"), True


def open_reader(terminal: Terminal, commands: Sequence[str] = ()) -> Reader:
    """The best reader that standard input allows."""
    if sys.stdin is None:
        raise UsageError(
            "an interactive session needs standard input, which is closed: give a prompt instead"
        )
    if sys.stdin.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown"):
        return editing_reader(commands)
    return plain_reader(terminal)


def plain_reader(terminal: Terminal) -> Reader:
    """Lines as the operating system hands them over; the prompt is shown only to a person."""
    is_person = sys.stdin.isatty()

    def read_line(prompt: str) -> str:
        if is_person:
            terminal.ask(prompt)
        try:
            line = sys.stdin.readline()
            line.encode()
        except UnicodeError:
            raise UsageError("standard input is not UTF-8 text: send text in that encoding") from None
        if not line:
            raise EOFError
        return line.rstrip("\r\n")

    def read() -> str:
        text = read_line(PROMPT)
        while is_open(text):
            text += "\n" + read_line(CONTINUATION)
        return text

    return read


def editing_reader(commands: Sequence[str]) -> Reader:
    """Line editing, history over sessions, completion of commands with Tab, pasted blocks kept whole."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.output import create_output

    session: PromptSession[str] = PromptSession(
        message=PROMPT,
        prompt_continuation=CONTINUATION,
        multiline=True,
        history=_history(),
        key_bindings=_enter_ends_entry(),
        completer=WordCompleter(list(commands), sentence=True),
        complete_while_typing=False,
        output=create_output(always_prefer_tty=True),
    )

    def read() -> str:
        text = session.prompt()
        try:
            text.encode()
        except UnicodeEncodeError:
            return text.encode(errors="replace").decode()
        return text

    return read


def history_path() -> Path:
    """``$XDG_STATE_HOME/nanollama/history``, as the XDG base directory specification has it."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "nanollama" / "history"


def _history() -> "History":
    """The history file, readable by its owner only, or memory where none is wanted or can be written."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    if any(os.environ.get(name, "").lower() not in _NO for name in NO_HISTORY):
        return InMemoryHistory()
    try:
        path = history_path()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        with path.open("ab"):
            return FileHistory(path)
    except (OSError, RuntimeError):
        return InMemoryHistory()


def _enter_ends_entry() -> "KeyBindings":
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    bindings = KeyBindings()

    @bindings.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if is_open(buffer.text):
            buffer.newline(copy_margin=False)
        else:
            buffer.validate_and_handle()

    @bindings.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    return bindings
