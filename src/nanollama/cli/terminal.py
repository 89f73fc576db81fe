"""What a person sees: answers go to standard output, everything about them to standard error.

Text of a model is not trusted with the terminal: where it would be interpreted, control characters are shown
as symbols. Files and pipes get it unchanged.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from nanollama.types import Completion, Timings

_SYMBOLS = {code: chr(0x2400 + code) for code in range(0x20) if code not in (0x09, 0x0A)}
_SYMBOLS |= {0x7F: "\u2421"} | dict.fromkeys(range(0x80, 0xA0), "\ufffd")
_SYMBOLS[0x0D] = ""  # the line feed of a CR LF pair is enough, and a lone CR would overwrite the line


def harmless(text: str) -> str:
    """``text`` without what a terminal takes for a command (ECMA-48): C0 but tab and newline, DEL, C1."""
    return text.translate(_SYMBOLS)


def table(rows: list[tuple[str, ...]]) -> str:
    """``rows`` in columns, four blanks apart; the first row is the heading."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "    ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


class Terminal:
    """The two streams of a command, and what may be done to each of them."""

    def __init__(self, out: TextIO, err: TextIO) -> None:
        self._out, self._err = out, err
        self.out_is_tty, self.err_is_tty = out.isatty(), err.isatty()
        self._column_zero = True
        self._status = ""
        self._color = self.err_is_tty and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

    def write(self, text: str) -> None:
        """A piece of an answer, shown at once."""
        if text:
            self._out.write(harmless(text) if self.out_is_tty else text)
            self._out.flush()
            self._column_zero = text.endswith("\n")

    def end_line(self) -> None:
        """Finish the line of an answer, unless it ended with a newline itself."""
        if not self._column_zero:
            self.write("\n")

    def say(self, text: str) -> None:
        """A line about the session, for the reader and not part of an answer."""
        self._err.write((harmless(text) if self.err_is_tty else text) + "\n")
        self._err.flush()

    def note(self, text: str) -> None:
        """The same in the background: ``[text]``, dimmed where the terminal can."""
        line = f"[{harmless(text) if self.err_is_tty else text}]"
        self._err.write(f"\x1b[2m{line}\x1b[0m\n" if self._color else f"{line}\n")
        self._err.flush()

    def interrupt(self, text: str) -> None:
        """A note at any time: in front of a ``status``, or on a line of its own amid an answer."""
        if self._status:
            self.clear_line()
        elif not self._column_zero and self.out_is_tty and self.err_is_tty:
            self._err.write("\n")
        self.note(text)
        self._err.write(self._status)
        self._err.flush()

    def space(self) -> None:
        """An empty line that sets what follows apart, for a person only."""
        if self.err_is_tty:
            self.say("")

    def ask(self, prompt: str) -> None:
        """The beginning of a line that a person finishes."""
        self._err.write(prompt)
        self._err.flush()

    def clear_line(self) -> None:
        """Take back an unfinished line of ``status``."""
        if self.err_is_tty:
            self._err.write("\r\x1b[K" if os.environ.get("TERM") != "dumb" else "\n")
            self._err.flush()

    @contextmanager
    def status(self, text: str) -> Iterator[None]:
        """Show ``text`` while the body runs, only to a person, and leave no trace."""
        if self.err_is_tty:
            self._status = harmless(text)
            self._err.write(self._status)
            self._err.flush()
        try:
            yield
        finally:
            self._status = ""
            self.clear_line()


def rate(tokens_per_second: float) -> str:
    """One decimal below 100, none from there on: the digits that a repeated run reproduces."""
    digits = 1 if round(tokens_per_second, 1) < 100 else 0
    return f"{tokens_per_second:.{digits}f}"


def timing_text(timings: "Timings") -> str:
    """``prefill: 23 tok @ 113 t/s | decode: 8 tok @ 9.5 t/s``; cached tokens are counted apart."""
    cached = f" + {timings.cached_tokens} cached" if timings.cached_tokens else ""
    return (
        f"prefill: {timings.prefill_tokens} tok @ {rate(timings.prefill_tok_s)} t/s{cached} | "
        f"decode: {timings.decode_tokens} tok @ {rate(timings.decode_tok_s)} t/s"
    )


def notices(completion: "Completion", n_ctx: int, max_tokens: int | None) -> list[str]:
    """What a reader has to know about an answer beside its text: what was left out, why it ended early."""
    lines = []
    if completion.dropped_messages:
        several = completion.dropped_messages > 1
        count = f"{completion.dropped_messages} oldest messages" if several else "oldest message"
        lines.append(
            f"context full: dropped the {count} ({completion.dropped_tokens} tokens); "
            "--context-policy error refuses instead"
        )
    elif completion.dropped_tokens:
        lines.append(
            f"context full: dropped the first {completion.dropped_tokens} tokens of the prompt; "
            "--context-policy error refuses instead"
        )
    if completion.finish_reason == "length":
        lines.append(_why_length(completion, n_ctx, max_tokens))
    return lines


def _why_length(completion: "Completion", n_ctx: int, max_tokens: int | None) -> str:
    # A server says only how many tokens there were, of which the first came with the prompt.
    generated = len(completion.token_ids) or completion.timings.decode_tokens + 1
    if max_tokens is not None and generated >= max_tokens:
        return "stopped: max tokens reached"
    if completion.prompt_tokens + generated >= n_ctx - 1:
        return f"stopped: the context window of {n_ctx} tokens is full"
    return "stopped: token limit reached"
