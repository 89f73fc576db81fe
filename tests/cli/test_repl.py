"""The interactive session: with a scripted model, and with a real one through a pseudo-terminal."""

import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nanollama.cli.reader import _history as open_history
from nanollama.cli.reader import history_path, is_open, unquoted
from nanollama.cli.repl import COMMANDS, Repl
from nanollama.errors import ContextOverflowError
from nanollama.store.recipe import Recipe
from nanollama.types import Message


def entries(*script):
    """A reader that returns or raises each of ``script`` and then reports the end of input."""
    steps = iter(script)

    def read() -> str:
        step = next(steps, EOFError())
        if isinstance(step, BaseException):
            raise step
        return step

    return read


def session(llm, screen, *script, chat=True, system=None, first=None, **generation) -> Repl:
    repl = Repl(llm, screen.terminal, chat=chat, system=system, generation=generation)
    assert repl.run(entries(*script), first=first) == 0
    return repl


def turns(*texts: str) -> list[Message]:
    return [Message(("user", "assistant")[i % 2], text) for i, text in enumerate(texts)]


def test_a_session_remembers_its_turns_and_shows_timings(scripted, screen) -> None:
    llm = scripted("Hello!", "Bob.")
    session(llm, screen, "I am Bob", "  who am I?  ")
    assert llm.asked == [turns("I am Bob"), turns("I am Bob", "Hello!", "who am I?")]
    assert screen.out == "Hello!\nBob.\n"
    assert screen.err.count("[prefill: 23 tok @ 115 t/s | decode: 8 tok @ 10.0 t/s]\n") == 2


def test_a_first_prompt_is_answered_before_the_first_entry(scripted, screen) -> None:
    llm = scripted("one", "two")
    session(llm, screen, "b", first="a")
    assert llm.asked[1] == turns("a", "one", "b")


def test_empty_entries_are_not_sent(scripted, screen) -> None:
    llm = scripted()
    session(llm, screen, "", "   ", '""""""')
    assert llm.asked == []


@pytest.mark.parametrize("leave", ["/exit", "/bye", " /exit "])
def test_exit_leaves_without_reading_on(scripted, screen, leave: str) -> None:
    llm = scripted()
    session(llm, screen, leave, "never sent")
    assert llm.asked == []


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_lists_every_command(scripted, screen, name: str) -> None:
    session(scripted(), screen, "/help")
    assert name in screen.err


def test_an_interrupted_answer_stays_in_the_conversation_and_says_so(scripted, screen) -> None:
    llm = scripted(("A long story", 6), "Yes.")
    session(llm, screen, "tell", "go on")
    assert llm.asked[1] == turns("tell", "A long", "go on")
    assert screen.out == "A long\nYes.\n"
    assert "[interrupted: the partial answer stays in the conversation]" in screen.err


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        (("late", 0), "[interrupted: nothing is added to the conversation]"),
        (KeyboardInterrupt(), "[interrupted: nothing is added to the conversation]"),
        (ContextOverflowError("too long: shorten it"), "error: too long: shorten it"),
        (MemoryError(), "error: not enough memory"),
    ],
)
def test_without_an_answer_the_message_is_forgotten_and_the_session_goes_on(
    scripted, screen, trouble, said: str
) -> None:
    llm = scripted(trouble, "fine")
    session(llm, screen, "one", "two")
    assert llm.asked[1] == turns("two")
    assert said in screen.err
    assert screen.out == "fine\n"


def test_ctrl_c_at_the_prompt_only_hints(scripted, screen) -> None:
    llm = scripted("ok")
    session(llm, screen, KeyboardInterrupt(), "still here")
    assert "[Ctrl+D or /exit leaves]" in screen.err
    assert llm.asked == [turns("still here")]


def test_clear_forgets_the_conversation_and_keeps_the_system_prompt(scripted, screen) -> None:
    llm = scripted("a", "b")
    session(llm, screen, "one", "/clear", "two", system="Be brief.")
    assert llm.asked == [turns("one"), turns("two")]
    assert [options["system"] for options in llm.options] == ["Be brief.", "Be brief."]


def test_the_system_prompt_can_be_set_shown_and_removed(scripted, screen) -> None:
    llm = scripted("a", "b", "c")
    session(llm, screen, "1", "/system Be a pirate.", "2", "/system", "/system off", "3")
    assert [options["system"] for options in llm.options] == [None, "Be a pirate.", None]
    assert screen.err.count("System prompt: Be a pirate.") == 2
    assert "No system prompt." in screen.err


def test_set_changes_what_the_next_answer_is_asked_with(scripted, screen) -> None:
    llm = scripted("a", "b")
    changes = (
        "temperature 0.5",
        "top_k 3",
        "num_predict 7",
        "stop END",
        "logit_bias 3=-1",
        "seed 9",
        "top_k default",
    )
    session(llm, screen, "x", *(f"/set parameter {change}" for change in changes), "y", min_p=0.1)
    assert llm.options[0] == {"system": None, "min_p": 0.1}
    assert llm.options[1] == {
        "system": None,
        "min_p": 0.1,
        "temperature": 0.5,
        "max_tokens": 7,
        "stop": ("END",),
        "logit_bias": {3: -1.0},
        "seed": 9,
    }


def test_set_alone_shows_every_parameter(scripted, screen) -> None:
    session(scripted(), screen, "/set", temperature=0.25)
    assert "  temperature        0.25\n" in screen.err
    assert "  top_k              default\n" in screen.err


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("/set parameter temperature hot", "temperature must be a number from 0 to 100, not 'hot'"),
        ("/set parameter temperature nan", "temperature must be a number"),
        ("/set parameter tmp 1", "unknown parameter tmp: expected one of max_tokens, temperature"),
        ("/set parameter top_k", "top_k needs a value"),
        ("/set parameter num_ctx 512", "n_ctx is fixed when the model is loaded: start again with --n-ctx"),
        ("/set temperature hot", "temperature must be a number from 0 to 100, not 'hot'"),
        ("/set verbose", "unknown parameter verbose: expected one of max_tokens, temperature"),
        ("/retry", "there is no answer to try again"),
        ("/frobnicate now", "unknown command /frobnicate: /help lists them"),
        ("/sho", "unknown command /sho (did you mean /show?)"),
        ("/etc/passwd", "unknown command /etc/passwd"),
    ],
)
def test_a_wrong_command_is_one_sentence_and_never_sent(scripted, screen, entry: str, said: str) -> None:
    llm = scripted()
    session(llm, screen, entry)
    (line,) = [line for line in screen.err.splitlines() if line.startswith("error: ")]
    assert said in line
    assert llm.asked == []


def test_quotes_send_a_text_that_begins_with_a_slash(scripted, screen) -> None:
    llm = scripted("ok")
    session(llm, screen, '"""/exit"""')
    assert llm.asked == [turns("/exit")]


def test_retry_asks_the_last_question_again(scripted, screen) -> None:
    llm = scripted("a", "b", "c")
    session(llm, screen, "one", "two", "/retry")
    assert llm.asked[2] == llm.asked[1] == turns("one", "a", "two")


@pytest.mark.parametrize("trouble", [("late", 0), ContextOverflowError("too long"), MemoryError()])
def test_a_retry_without_an_answer_keeps_the_earlier_one(scripted, screen, trouble) -> None:
    llm = scripted("a", trouble, "b")
    session(llm, screen, "one", "/retry", "two")
    assert llm.asked[2] == turns("one", "a", "two")


def test_dropped_messages_are_announced_and_not_sent_again(scripted, screen) -> None:
    llm = scripted("a", "b", "c", dropped=2, drop_at=2)
    session(llm, screen, "one", "two", "three")
    assert (
        screen.err.count("[context full: dropped the 2 oldest messages (406 tokens); --context-policy") == 1
    )
    assert llm.asked[1] == turns("one", "a", "two")
    assert llm.asked[2] == turns("two", "b", "three")


def test_without_a_template_each_entry_is_completed_by_itself(scripted, screen) -> None:
    llm = scripted(" a time", " story", has_template=False)
    session(llm, screen, "Once upon", "/system x", "A", chat=False)
    assert llm.asked == ["Once upon", "A"]
    assert "a system prompt needs a chat template" in screen.err


def test_show_describes_the_model(scripted, screen) -> None:
    session(scripted("a"), screen, "hi", "/show")
    for fact in ("scripted.gguf", "100 tokens", "cpu float32", "messages  2"):
        assert fact in screen.err


@pytest.mark.parametrize(
    ("text", "open_", "meant"),
    [
        ("hello", False, ("hello", False)),
        ('"""', True, ("", True)),
        ('"""a', True, ("a", True)),
        ('"""a\nb"""', False, ("a\nb", True)),
        ('"""\na\n\nb\n"""  ', False, ("a\n\nb", True)),
        ('""""""', False, ("", True)),
        ('""""', True, ('"', True)),
        ('say """x"""', False, ('say """x"""', False)),
    ],
)
def test_triple_quotes_begin_and_end_a_block(text: str, open_: bool, meant: tuple[str, bool]) -> None:
    assert is_open(text) == open_
    if not open_:
        assert unquoted(text) == meant


# The controlling terminal turns the byte of Ctrl+C into a signal: a session leader gets it by opening one.
# A shell starts its background jobs with interrupts ignored, which programs they start inherit.
AS_LEADER = (
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); "
    "os.open(os.ttyname(0), os.O_RDWR); "
    "os.execv(sys.executable, [sys.executable, '-m', 'nanollama', *sys.argv[1:]])"
)
CTRL_C, CTRL_D, UP, ENTER = "\x03", "\x04", "\x1b[A", "\r"
ESCAPES = re.compile(r"\x1b(\[[0-9;?]*[a-zA-Z]|[=>])")


class Keyboard:
    """The person's end of a pseudo-terminal. ``screen`` is what nobody has looked at yet, without escapes."""

    def __init__(self, fd: int, process: subprocess.Popen[bytes]) -> None:
        self._fd, self.process, self.screen = fd, process, ""

    def type(self, keys: str) -> None:
        os.write(self._fd, keys.encode())

    def expect(self, text: str, seconds: float = 90) -> str:
        """Wait until ``text`` is on the screen and return what was there before it."""
        end = time.monotonic() + seconds
        while text not in self.screen:
            ready, _, _ = select.select([self._fd], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"{text!r} did not appear, but {self.screen!r}"
            try:
                data = os.read(self._fd, 4096)
            except OSError:  # how Linux reports that the other end is closed
                data = b""
            assert data, f"the session ended before {text!r} appeared: {self.screen!r}"
            self.screen = ESCAPES.sub("", self.screen + data.decode(errors="replace"))
        before, _, self.screen = self.screen.partition(text)
        return before

    def wait_for_answer(self) -> None:
        """Wait until the editor has given the terminal back, and look away from what it drew."""
        while not termios.tcgetattr(self._fd)[3] & termios.ICANON:
            time.sleep(0.01)
        while select.select([self._fd], [], [], 0)[0]:
            os.read(self._fd, 4096)
        self.screen = ""


@contextmanager
def terminal_session(*argv: str, **environment: str) -> Iterator[Keyboard]:
    """A session of the real entry point on a terminal of its own."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 100))
    with subprocess.Popen(
        [sys.executable, "-c", AS_LEADER, *argv],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        env=os.environ | {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", "NO_COLOR": ""} | environment,
    ) as process:
        os.close(slave)
        try:
            yield Keyboard(master, process)
        finally:
            process.kill()
            os.close(master)


@pytest.mark.model
def test_a_person_talks_to_a_real_model_in_a_terminal(smollm2_path: Path, tmp_path: Path) -> None:
    line = ["run", "smollm2", "--temp", "0", "--device", "cpu", "--ctx", "512"]
    with terminal_session(*line, XDG_STATE_HOME=str(tmp_path)) as person:
        person.expect("Loading smollm2 …")
        person.expect("/help lists the commands]")
        person.expect(">>>")
        person.type("What is the capital of France?" + ENTER)
        person.expect("Paris")
        person.expect("[prefill: ")
        person.expect(">>>")
        person.type("/set parameter logit_bias 2=-inf" + ENTER)  # without its token of end, an answer goes on
        person.expect("logit_bias = {2: -inf}")
        person.expect(">>>")
        person.type('"""' + ENTER)
        person.expect("...")
        person.type('Tell me a story."""' + ENTER)
        person.wait_for_answer()
        person.expect(" ")
        person.type(CTRL_C)
        person.expect("[interrupted: the partial answer stays in the conversation]")
        person.expect(">>>")
        person.type("/set parameter logit_bias default" + ENTER)
        person.expect("logit_bias = default")
        person.expect(">>>")
        person.type("never sent" + CTRL_C)
        person.expect("[Ctrl+D or /exit leaves]")
        person.expect(">>>")
        person.type("/clear" + ENTER)
        person.expect("The conversation is forgotten")
        person.expect(">>>")
        person.type(UP * 6 + ENTER)
        person.expect("Paris")
        person.expect("[prefill: ")
        person.expect(">>>")
        person.type(CTRL_D)
        assert person.process.wait(60) == 0
    history = tmp_path / "nanollama" / "history"
    assert "What is the capital of France?" in history.read_text()
    assert history.stat().st_mode & 0o077 == 0


@pytest.mark.model
def test_a_terminal_that_can_do_nothing_still_holds_a_session(stories_path: Path, tmp_path: Path) -> None:
    line = ["--interactive", "--model", str(stories_path), "--max-tokens", "5"]
    with terminal_session(*line, TERM="dumb", XDG_STATE_HOME=str(tmp_path)) as person:
        person.expect(">>>")
        person.type("Once upon\n")
        person.expect("[stopped: max tokens reached]")
        person.expect(">>>")
        person.type(CTRL_C)
        person.expect("[Ctrl+D or /exit leaves]")
        person.expect(">>>")
        person.type("/bye\n")
        assert person.process.wait(60) == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.model
def test_a_session_can_be_scripted_through_a_pipe(stories_path: Path) -> None:
    script = '/set parameter max_tokens 3\n"""\nOnce upon\na time"""\n'
    done = subprocess.run(
        [sys.executable, "-m", "nanollama", "--interactive", "--raw", "--model", str(stories_path)],
        input=script,
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=True,
    )
    assert "max_tokens = 3" in done.stderr
    assert "[stopped: max tokens reached]" in done.stderr
    assert ">>>" not in done.stdout + done.stderr
    assert 0 < len(done.stdout.strip()) < 40


RECIPE = Recipe(
    system="You are Mario.",
    parameters={"temperature": 0.3, "stop": ("a", "b"), "num_predict": 9, "num_batch": 4},
    messages=tuple(turns("hi", "it's me")),
)


def test_the_system_prompt_of_a_recipe_is_shown_changed_and_switched_off(scripted, screen) -> None:
    llm = scripted("one", "two", "three")
    llm.recipe = RECIPE
    session(llm, screen, "/system", "a", "/system Be Luigi.", "b", "/system off", "c")
    assert [options["system"] for options in llm.options] == ["You are Mario.", "Be Luigi.", ""]
    assert "System prompt: You are Mario." in screen.err


def test_what_comes_from_a_recipe_is_shown_as_the_models_own(scripted, screen) -> None:
    llm = scripted()
    llm.recipe = RECIPE
    session(llm, screen, "/set", "/set parameter temperature 1", "/set", "/show")
    settings, changed = screen.err.split("temperature = 1.0")
    assert re.search(r"temperature +0.3, the model's own", settings)
    assert re.search(r"max_tokens +9, the model's own", settings)
    assert re.search(r"stop +'a', 'b', the model's own", settings)
    assert re.search(r"temperature +1.0\n", changed)
    assert re.search(r"system +You are Mario.\n", changed)
    assert re.search(r"messages +0, after 2 of the model's own\n", changed)
    assert re.search(r"num_batch +4, the model's own\n", changed)


@pytest.mark.parametrize(("value", "kept"), [("", True), ("0", True), ("1", False), ("true", False)])
@pytest.mark.parametrize("name", ["NANOLLAMA_NOHISTORY", "OLLAMA_NOHISTORY"])
def test_a_history_is_not_kept_where_none_is_wanted(name, value, kept, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv(name, value)
    open_history()
    assert history_path().exists() is kept
