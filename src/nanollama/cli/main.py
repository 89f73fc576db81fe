"""The entry point: arguments in, an exit code out.

0 is success, 1 a failure of model or machine, 2 a wrong command, 130 an interruption, 141 a reader that went
away. A failure is one sentence on standard error. Nothing heavy is imported before a command needs it.
"""

import argparse
import os
import re
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

from nanollama.cli.parsers import did_you_mean
from nanollama.cli.terminal import harmless
from nanollama.errors import NanollamaError, UsageError

COMMANDS: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (("run",), "run", "add_run_parser"),
    (("list", "ls"), "models", "add_list_parser"),
    (("show",), "show", "add_show_parser"),
    (("pull",), "pull", "add_pull_parser"),
    (("search",), "search", "add_search_parser"),
    (("rm",), "models", "add_rm_parser"),
    (("cp",), "models", "add_cp_parser"),
    (("path",), "models", "add_path_parser"),
    (("import",), "imports", "add_import_parser"),
    (("verify",), "disk", "add_verify_parser"),
    (("du",), "disk", "add_du_parser"),
    (("bench",), "bench", "add_bench_parser"),
    (("perplexity",), "perplexity", "add_perplexity_parser"),
    (("serve",), "serve", "add_serve_parser"),
    (("ps",), "ps", "add_ps_parser"),
    (("stop",), "ps", "add_stop_parser"),
    (("quantize",), "quantize", "add_quantize_parser"),
    (("create",), "create", "add_create_parser"),
    (("completion",), "completion", "add_completion_parser"),
)
"""The names of each command, its module in this package, and the function there that adds its parser.

A command imports its own module and no other's.
"""

SEES_ALL = "completion"
"""The command that is about all the others."""

EXAMPLES = """\
examples:
  nanollama run "Why is the sky blue?"             one answer of the default model
  nanollama run smollm2                            an interactive session
  cat notes.txt | nanollama run smollm2 "Summarise this."
  nanollama --prompt "The meaning of life is"      complete a text without a command;
                                                   takes the options of run and --model, --chat, --interactive

nanollama COMMAND --help lists the options of a command.
"""


_SENTENCES = (
    (re.compile(r"the following arguments are required: (.*)"), r"what is missing is \1"),
    (re.compile(r"argument (\S+): expected one argument"), r"\1 needs a value"),
    (
        re.compile(r"argument (\S+): invalid choice: (\S+) \(choose from (.*)\)"),
        r"\1 is \2; expected one of \3",
    ),
)
"""What argparse says, and the same as a sentence."""


class Parser(argparse.ArgumentParser):
    """An ``ArgumentParser`` that takes no abbreviations and whose complaints are errors like any other."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False} | kwargs)

    def error(self, message: str) -> NoReturn:
        for pattern, sentence in _SENTENCES:
            message = pattern.sub(sentence, message)
        raise UsageError(f"{message}: {self.prog} --help shows what can be given")

    def read(self, argv: Sequence[str]) -> argparse.Namespace:
        """The arguments, options and words in any order, or ``UsageError`` with a suggestion."""
        if "--server" in argv:
            from nanollama.cli.remote import with_address

            argv = with_address(argv)
        args, unknown = self.parse_known_intermixed_args(argv)
        if unknown:
            option = unknown[0].partition("=")[0]
            if not option.startswith("-"):
                self.error(f"unexpected argument {option!r}")
            if self.prog == "nanollama run" and option in flat_parser(argv)._option_string_actions:
                raise UsageError(
                    f"{option} belongs to the form without a command: nanollama run MODEL PROMPT, or "
                    "nanollama --model MODEL --prompt PROMPT"
                )
            self.error(f"unknown option {option}{did_you_mean(option, list(self._option_string_actions))}")
        return args


class Help(argparse.RawDescriptionHelpFormatter):
    """The list of commands without argparse's heading for it, one command a line."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=18)

    def _format_action(self, action: argparse.Action) -> str:
        text = super()._format_action(action)
        return text.split("\n", 1)[1] if action.nargs == argparse.PARSER else text


class ShowVersion(argparse.Action):
    """``--version``, which looks the version up only when it is asked for."""

    def __call__(self, *_: Any) -> NoReturn:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"nanollama {version('nanollama')}")
        except PackageNotFoundError:
            print("nanollama, run from its source folder without being installed")
        raise SystemExit(0)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """What ``argv`` asks for; its ``handler`` does it."""
    top = Parser(
        prog="nanollama",
        usage="nanollama COMMAND ...\n       nanollama --prompt TEXT [--model MODEL] [OPTIONS]",
        description="Run large language models on the machine in front of you.",
        epilog=EXAMPLES,
        formatter_class=Help,
    )
    top.add_argument("--version", action=ShowVersion, nargs=0, help="show the version and exit")
    subparsers = top.add_subparsers(title="commands", prog="nanollama")
    for module, add_parser in wanted_parsers(argv[0] if argv else ""):
        getattr(import_module(f"nanollama.cli.{module}"), add_parser)(subparsers)
    if not argv or (argv[0].startswith("-") and not {"-h", "--help"}.isdisjoint(argv)):
        return top.parse_args(["--help"])
    if argv[0] == "--version":
        return top.parse_args(argv)
    if argv[0] in subparsers.choices:
        command: Parser = subparsers.choices[argv[0]]
        return command.read(argv[1:])
    if argv[0].startswith("-"):
        return flat_parser(argv).read(argv)
    if " " in argv[0]:
        raise UsageError(f"{argv[0]!r} is not a command: to have it answered, nanollama run {argv[0]!r}")
    hint = did_you_mean(argv[0], [name for names, _, _ in COMMANDS for name in names])
    raise UsageError(f"unknown command {argv[0]}{hint}: nanollama --help lists the commands")


def wanted_parsers(name: str) -> list[tuple[str, str]]:
    """Module and function of the parser of one command; of all of them where ``name`` is none."""
    every = [(module, add_parser) for _, module, add_parser in COMMANDS]
    own = [(module, add_parser) for names, module, add_parser in COMMANDS if name in names]
    return own if own and name != SEES_ALL else every


def flat_parser(argv: Sequence[str]) -> Parser:
    """The parser of the form without a command."""
    flat = Parser(prog="nanollama", add_help=False)
    if "--serve" in argv:
        from nanollama.cli.serve import add_flat_serve_options

        add_flat_serve_options(flat)
    else:
        from nanollama.cli.run import add_flat_options

        add_flat_options(flat)
    return flat


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. ``argv`` is without the program's name, ``None`` for the process's own arguments."""
    prepare_streams()
    # numpy's matrix library starts threads of its own, which nothing here uses and which would take Ctrl+C
    # from the main thread.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    warnings.showwarning = show_warning
    try:
        code = dispatch(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        return code
    except NanollamaError as error:
        return fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        abandon_output()
        return 141
    except OSError as error:
        if error.filename is None:  # writing failed, and not the opening of a file
            abandon_output()
        where = f": {error.filename}" if error.filename else ""
        return fail(f"{error.strerror or error}{where}", 1)
    except MemoryError:
        return fail("not enough memory: try a smaller model, a smaller --ctx or --dtype bfloat16", 1)


def prepare_streams() -> None:
    """Make both outputs something that takes any text: also when they are closed or not UTF-8."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  # open as long as the process is
        elif hasattr(stream, "reconfigure"):  # not when a caller has put another stream there
            stream.reconfigure(errors="replace")


def show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """A warning is a sentence like an error, without the line of code that gave it."""
    print(f"nanollama: {' '.join(str(message).splitlines())}", file=sys.stderr)


def dispatch(argv: Sequence[str]) -> int:
    """The exit code of the command that ``argv`` spells."""
    try:
        args = parse(argv)
    except SystemExit:  # argparse has shown the help or the version
        return 0
    code: int = args.handler(args)
    return code


def abandon_output() -> None:
    """Let go of an output that cannot be written to: Python flushes it once more at exit, and complains."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def fail(message: str, exit_code: int) -> int:
    """Say what went wrong, in one line."""
    line = f"nanollama: error: {' '.join(message.splitlines())}"
    print(harmless(line) if sys.stderr.isatty() else line, file=sys.stderr)
    return exit_code
