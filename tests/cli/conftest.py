"""A scripted model for tests of the command line: it answers as told, and remembers what it was asked."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nanollama.cli.terminal import Terminal
from nanollama.errors import TemplateError
from nanollama.store.recipe import Recipe
from nanollama.types import Completion, Message, TextEvent, Timings

Script = str | tuple[str, int] | BaseException


class ScriptedLLM:
    """Has the face of ``LLM``. An answer is sent character by character.

    An exception in ``script`` is raised instead of an answer; a Ctrl+C after n characters is ``(text, n)``.
    The answer number ``drop_at`` reports that the context policy left out ``dropped`` messages.
    """

    name, path, device, dtype = "scripted", Path("scripted.gguf"), "cpu", "float32"
    n_ctx, load_s = 100, 0.5
    recipe = Recipe()

    def __init__(self, *script: Script, has_template: bool = True, dropped: int = 0, drop_at: int = 1):
        self.script, self.has_template = list(script), has_template
        self.dropped, self.drop_at = dropped, drop_at
        self.asked: list[Any] = []
        self.options: list[dict[str, Any]] = []

    def events(self, prompt: str | list[Message], **options: Any) -> Iterator[TextEvent]:
        self.asked.append(prompt)
        self.options.append(options)
        if not isinstance(prompt, str):
            roles = [message.role for message in prompt]
            if roles != [("user", "assistant")[i % 2] for i in range(len(roles))] or len(roles) % 2 == 0:
                raise TemplateError("roles must alternate, and a user must have the last word")
        step = self.script.pop(0)
        if isinstance(step, BaseException):
            raise step
        return self._run(*step) if isinstance(step, tuple) else self._run(step)

    def _run(self, text: str, stop_after: int | None = None) -> Iterator[TextEvent]:
        for i, char in enumerate(text):
            if i == stop_after:
                raise KeyboardInterrupt
            yield TextEvent(char)
        if stop_after is not None:
            raise KeyboardInterrupt
        limit = self.options[-1].get("max_tokens")
        finish = "length" if limit == len(text) else "stop"
        timings = Timings(prefill_tokens=23, prefill_s=0.2, decode_tokens=8, decode_s=0.8)
        ids = tuple(range(len(text)))
        dropped = self.dropped if len(self.asked) == self.drop_at else 0
        yield TextEvent("", Completion(text, ids, finish, 23, timings, dropped, 203 * dropped))


class Screen:
    """A terminal whose two streams can be read back; ``tty`` makes both look like one."""

    def __init__(self, tty: bool = False) -> None:
        self._out, self._err = Stream(tty), Stream(tty)
        self.terminal = Terminal(self._out, self._err)

    @property
    def out(self) -> str:
        return self._out.getvalue()

    @property
    def err(self) -> str:
        return self._err.getvalue()

    @property
    def flushed(self) -> list[str]:
        """What was on standard output at each flush."""
        return self._out.flushed


class Stream(io.StringIO):
    def __init__(self, tty: bool) -> None:
        super().__init__()
        self._tty = tty
        self.flushed: list[str] = []

    def isatty(self) -> bool:
        return self._tty

    def flush(self) -> None:
        self.flushed.append(self.getvalue())


@pytest.fixture(autouse=True)
def _no_server_of_the_developers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server named in the environment of whoever runs the tests isn't asked."""
    for name in ("NANOLLAMA_HOST", "OLLAMA_HOST", "NANOLLAMA_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def screen() -> Screen:
    return Screen()


@pytest.fixture
def tty_screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return Screen(tty=True)


@pytest.fixture
def scripted() -> type[ScriptedLLM]:
    return ScriptedLLM
