"""``run`` and the flat form: flags in, an answer on standard output out, or an interactive session.

Everything that can be wrong with the command is found before a model is loaded. The answer is the fold of the
same events whether it is streamed or printed as JSON.
"""

import argparse
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from nanollama.cli.options import CONTEXT, GENERATION, LOADING, add_settings, given
from nanollama.cli.parsers import MODEL_HELP
from nanollama.cli.remote import (
    Model,
    add_server_option,
    check_loading,
    check_options,
    connect,
    server_address,
    server_of_run,
)
from nanollama.cli.terminal import Terminal, notices, timing_text
from nanollama.client import Address
from nanollama.errors import UsageError
from nanollama.types import DEFAULT_MODEL, Completion, Message, TextEvent

if TYPE_CHECKING:
    from nanollama.llm import LLM

_MODEL_WORD = re.compile(r"[A-Za-z0-9~./][A-Za-z0-9._:/@-]*", re.ASCII)
HINT_AFTER_S = 3.0


@dataclass(frozen=True, slots=True)
class RunConfig:
    """What one invocation is to do. ``prompt`` ``None`` leaves the first word to a person.

    Without a ``server`` the model is loaded here. ``announces`` says what was loaded.
    """

    model: str
    prompt: str | None
    interactive: bool
    chat: bool
    system: str | None
    json: bool
    loading: Mapping[str, Any]
    generation: Mapping[str, Any]
    server: Address | None = None
    announces: bool = False


@dataclass(frozen=True, slots=True)
class Shown:
    """What reached the reader. ``completion`` is ``None`` when the answer was interrupted."""

    text: str
    completion: Completion | None
    first_s: float


def add_run_parser(subparsers: "argparse._SubParsersAction[Any]") -> None:
    parser = subparsers.add_parser(
        "run",
        help="answer a prompt, or talk in an interactive session",
        usage="nanollama run [MODEL] [PROMPT ...] [OPTIONS]",
        description="Answer PROMPT, or start an interactive session when there is none. Text piped in "
        "is put before the prompt. A first argument that cannot be a name or a path is a prompt for the "
        "default model.",
    )
    parser.add_argument(
        "words", nargs="*", metavar="MODEL, PROMPT", help=f"{MODEL_HELP} ({DEFAULT_MODEL}); a text"
    )
    parser.add_argument("--raw", action="store_true", help="complete without the model's chat template")
    add_common_options(parser)
    parser.set_defaults(handler=run_command)


def add_flat_options(parser: argparse.ArgumentParser) -> None:
    """The options of the form without a command."""
    parser.add_argument("--prompt", metavar="TEXT", help="the text to complete, or to answer with --chat")
    parser.add_argument("--model", metavar="MODEL", default=DEFAULT_MODEL, help=MODEL_HELP)
    parser.add_argument("--chat", action="store_true", help="use the model's chat template")
    parser.add_argument("--interactive", action="store_true", help="go on with a session after the prompt")
    parser.add_argument("--raw", action="store_true", help="complete without the model's chat template")
    parser.add_argument("--batch-file", metavar="FILE", help="answer every prompt of a file, together")
    parser.add_argument("--output", metavar="FILE", help="with --batch-file: append answers as lines of JSON")
    add_common_options(parser)
    parser.set_defaults(handler=flat_command)


def add_common_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--system", metavar="TEXT", help="instructions that come before the conversation")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the text")
    add_settings(parser.add_argument_group("how to answer"), GENERATION)
    loading = parser.add_argument_group("how to load")
    add_server_option(
        loading, "use the server at ADDRESS (localhost:8000), which may have the model in memory already"
    )
    add_settings(loading, (*LOADING, CONTEXT))


def run_command(args: argparse.Namespace) -> int:
    return run(command_config(args))


def flat_command(args: argparse.Namespace) -> int:
    if args.batch_file is not None:
        return batch_command(args)
    if args.output is not None:
        raise UsageError("--output goes with --batch-file: give both or neither")
    return run(flat_config(args))


def batch_command(args: argparse.Namespace) -> int:
    """Answer every prompt of ``--batch-file``."""
    from nanollama.cli.batch import CACHE_TOKENS, check_output, read_items, run_batch

    for name in ("prompt", "interactive", "json", "server"):
        if getattr(args, name) not in (None, False):
            raise UsageError(f"--{name} does not go with --batch-file: leave one of them out")
    items = read_items(Path(args.batch_file))
    loading, generation = given(args, (*LOADING, CONTEXT)), given(args, GENERATION)
    output = Path(args.output) if args.output else None
    if output is not None:
        check_output(output)
    terminal = Terminal(sys.stdout, sys.stderr)
    with load(args.model, {"cache_tokens": CACHE_TOKENS, **loading}, terminal, announces=True) as llm:
        chat = args.chat or args.system is not None
        if chat and args.system is not None:
            generation = {**generation, "system": args.system}
        return run_batch(llm, terminal, items, generation, chat=chat, output=output)


def command_config(args: argparse.Namespace) -> RunConfig:
    """What ``nanollama run`` was asked to do."""
    words: list[str] = args.words
    names_model = bool(words) and is_model_word(words[0])
    model = words[0] if names_model else DEFAULT_MODEL
    rest = words[1:] if names_model else words
    prompt = " ".join(rest) if rest else None
    server = server_of_run(args.server, os.environ)
    interactive = prompt is None and is_person(sys.stdin)
    return run_config(args, model, prompt, server, interactive=interactive, chat=not args.raw)


def flat_config(args: argparse.Namespace) -> RunConfig:
    """What the form without a command was asked to do: complete a text unless a conversation is asked for."""
    if args.raw and args.chat:
        raise UsageError("--raw and --chat contradict each other: give one of them")
    interactive = args.interactive or (args.prompt is None and is_person(sys.stdin))
    chat = not args.raw and (args.chat or interactive or args.system is not None)
    server = None if args.server is None else server_address(args.server, os.environ)
    config = run_config(args, args.model, args.prompt, server, interactive=interactive, chat=chat)
    return replace(config, announces=True)


def run_config(
    args: argparse.Namespace,
    model: str,
    prompt: str | None,
    server: Address | None,
    *,
    interactive: bool,
    chat: bool,
) -> RunConfig:
    """The checked configuration of a run. Piped standard input is read, unless it is the session's input."""
    if args.raw and args.system is not None:
        raise UsageError("--system needs the chat template that --raw leaves out: give one of them")
    if interactive and args.json:
        raise UsageError(
            "--json prints one answer and cannot be used in an interactive session: give a prompt"
        )
    if args.system is not None:
        checked(args.system, "--system")
    if prompt is not None:
        checked(prompt, "the prompt")
    loading, generation = given(args, (*LOADING, CONTEXT)), given(args, GENERATION)
    if server is not None:
        check_loading(loading, server)
        check_options(generation)
    if not interactive:
        prompt = joined(piped_text(sys.stdin), prompt)
    return RunConfig(model, prompt, interactive, chat, args.system, args.json, loading, generation, server)


def is_person(stdin: TextIO | None) -> bool:
    return stdin is not None and stdin.isatty()


def is_model_word(word: str) -> bool:
    """Whether the first word of ``run`` is a model: it could be a name or a path, or it ends in ``.gguf``."""
    return bool(_MODEL_WORD.fullmatch(word)) or word.lower().endswith(".gguf")


def piped_text(stdin: TextIO | None) -> str:
    """All of standard input without its trailing line ends, or "" when a person sits there."""
    if stdin is None or is_person(stdin):
        return ""
    # A pipe that nobody closes looks like a hanging program, so say what it waits for.
    hint = threading.Timer(HINT_AFTER_S, print, ["[reading standard input to its end]"], {"file": sys.stderr})
    hint.daemon = True
    hint.start()
    try:
        data = stdin.buffer.read()
    finally:
        hint.cancel()
    try:
        return data.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"standard input is not UTF-8 text (byte 0x{data[error.start]:02x} at offset {error.start}): "
            "pipe text, converted with iconv if it has another encoding"
        ) from None


def joined(piped: str, prompt: str | None) -> str:
    """Piped text, an empty line, the prompt. Raises ``UsageError`` when both are empty."""
    text = "\n\n".join(part for part in (piped, prompt) if part)
    if not text.strip():
        raise UsageError('the prompt is empty: give one, as in nanollama run smollm2 "Why is the sky blue?"')
    return text


def checked(text: str, what: str) -> str:
    """``text``, unless the bytes it was typed with were not UTF-8 (PEP 383 marks those with surrogates)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(
            f"{what} is not valid UTF-8 text: check the encoding of the terminal or script"
        ) from None
    return text


def run(config: RunConfig) -> int:
    """Load the model, or have the server do it, and do what ``config`` says."""
    terminal = Terminal(sys.stdout, sys.stderr)
    with opened(config, terminal) as llm:
        chat = config.chat and llm.has_template
        if config.chat and not llm.has_template:
            if config.system is not None:
                raise UsageError(
                    f"--system needs a chat template and {short_name(llm)} has none: use the prompt for it"
                )
            unused = llm.recipe.system is not None or llm.recipe.messages
            terminal.note(
                f"{short_name(llm)} has no chat template: it completes the prompt as plain text"
                + (", without its system prompt and messages" if unused else "")
            )
        if config.interactive:
            from nanollama.cli.reader import open_reader
            from nanollama.cli.repl import COMMANDS, Repl

            repl = Repl(llm, terminal, chat=chat, system=config.system, generation=config.generation)
            return repl.run(open_reader(terminal, list(COMMANDS)), first=config.prompt)
        assert config.prompt is not None  # run_config made it so
        return run_once(llm, config.prompt, config, terminal, chat=chat)


def opened(config: RunConfig, terminal: Terminal) -> AbstractContextManager[Model]:
    """The model that ``config`` names, for as long as it is used."""
    if config.server is None:
        return load(config.model, config.loading, terminal, announces=config.announces)
    return nullcontext(connect(config.server, config.model, config.loading.get("n_ctx"), terminal))


def load(model: str, loading: Mapping[str, Any], terminal: Terminal, *, announces: bool = False) -> "LLM":
    """The model, with a bar while it is fetched, a message while it is read, and what it is if wanted.

    It is resolved first, so that a name that means nothing costs no import of anything heavy.
    """
    from nanollama.cli.progress import ProgressBar
    from nanollama.store.store import locate

    locate(model, progress=ProgressBar())
    with terminal.status(f"Loading {model} …"):
        from nanollama.llm import LLM

        llm = LLM(model, notice=terminal.interrupt, **loading)
    if announces:
        from nanollama.cli.show import count_text

        size = count_text(llm.num_parameters)
        terminal.say(f"Loaded {llm.spec.num_layers} layers, {size} params on {llm.device} ({llm.dtype})")
    if llm.quantized:
        terminal.say(llm.quantized)
    return llm


def run_once(llm: Model, prompt: str, config: RunConfig, terminal: Terminal, *, chat: bool) -> int:
    """One prompt, one answer. Raises ``KeyboardInterrupt`` again when what was written is a whole line."""
    question = [Message("user", prompt)] if chat else prompt
    system = config.system if chat else None
    ask = partial(llm.events, question, system=system, **config.generation)
    shown = show(ask, None if config.json else terminal)
    if shown.completion is None:
        raise KeyboardInterrupt
    if config.json:
        terminal.write(json.dumps(as_json(llm, shown.completion, shown.first_s), ensure_ascii=False) + "\n")
        return 0
    terminal.note(timing_text(shown.completion.timings))
    for notice in notices(shown.completion, llm.n_ctx, config.generation.get("max_tokens")):
        terminal.note(notice)
    return 0


def show(ask: Callable[[], Iterator[TextEvent]], terminal: Terminal | None) -> Shown:
    """Ask, and write each piece as it comes (nowhere without a terminal), to the end or to Ctrl+C."""
    text, completion, first_s = "", None, 0.0
    start = time.perf_counter()
    try:
        with interruptible():
            for event in ask():
                first_s = first_s or time.perf_counter() - start
                text += event.text
                completion = event.completion
                if terminal:
                    terminal.write(event.text)
    except KeyboardInterrupt:
        pass  # what was written stays, and without a completion the caller knows
    if terminal:
        terminal.end_line()
    return Shown(text, completion, first_s)


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl+C raises ``KeyboardInterrupt`` in the body, whatever handler a line editor has left behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def short_name(llm: Model) -> str:
    """What the model is called in a sentence: its name, or the last part of its path."""
    return Path(llm.name).name


def as_json(llm: Model, completion: Completion, first_s: float) -> dict[str, Any]:
    timings = completion.timings
    return {
        "model": llm.name,
        "text": completion.text,
        "token_ids": list(completion.token_ids) or None,  # those of a raw answer are not sent by a server
        "finish_reason": completion.finish_reason,
        "prompt_tokens": completion.prompt_tokens,
        "timings": {
            "load_s": round(llm.load_s, 6),
            "prefill_tokens": timings.prefill_tokens,
            "prefill_s": round(timings.prefill_s, 6),
            "prefill_tok_s": round(timings.prefill_tok_s, 3),
            "decode_tokens": timings.decode_tokens,
            "decode_s": round(timings.decode_s, 6),
            "decode_tok_s": round(timings.decode_tok_s, 3),
            "time_to_first_token_s": round(first_s, 6),
        },
        "dropped_messages": completion.dropped_messages,
        "dropped_tokens": completion.dropped_tokens,
    }
