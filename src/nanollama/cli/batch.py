"""``--batch-file``: a file of prompts in, all answers out, decoded together by one engine.

A line is a prompt, or in a ``.jsonl`` file an object with ``prompt`` or ``messages`` (OpenAI's batch form,
with ``body`` and ``custom_id``, too). With ``--output`` each answer is appended as a line the moment it is
there; running the same command again does only what is missing.
"""

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanollama.cli.terminal import Terminal, rate
from nanollama.errors import NanollamaError, UsageError
from nanollama.types import Completion

if TYPE_CHECKING:
    from nanollama.llm import LLM

IN_FLIGHT = 64
CACHE_TOKENS = 16384
"""Tokens in the cache of a batch: room for thirty-two answers of 512 tokens at once."""

BODY_OPTIONS = (
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "stop",
    "presence_penalty",
    "frequency_penalty",
)
"""Fields of an OpenAI body that mean the same to us; any other is refused by name."""


@dataclass(frozen=True, slots=True)
class BatchItem:
    """One prompt of the file: its key in the output, what to ask, and settings of its own."""

    key: str
    prompt: str | list[dict[str, str]]
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one prompt."""

    item: BatchItem
    completion: Completion | None
    error: str | None = None

    def line(self) -> str:
        """The outcome as one line of JSON."""
        facts: dict[str, Any] = {"custom_id": self.item.key, "prompt": self.item.prompt}
        if self.completion is None:
            facts["error"] = self.error
        else:
            facts |= {
                "text": self.completion.text,
                "finish_reason": self.completion.finish_reason,
                "prompt_tokens": self.completion.prompt_tokens,
                "completion_tokens": len(self.completion.token_ids),
                "dropped_messages": self.completion.dropped_messages,
            }
        return json.dumps(facts, ensure_ascii=False) + "\n"


def read_items(path: Path) -> list[BatchItem]:
    """The prompts of a file; empty lines are skipped.

    Raises:
        UsageError: the file can't be read, holds no prompt, or a line is not of the form above.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise UsageError(f"cannot read the prompts in {path}: {reason}") from None
    numbered = [(i, line) for i, line in enumerate(lines, 1) if line.strip()]
    if path.suffix == ".jsonl":
        items = [_item(i, line) for i, line in numbered]
    else:
        items = [BatchItem(str(i), line) for i, line in numbered]
    if not items:
        raise UsageError(f"{path} holds no prompt: give a file with one on each line")
    if len({item.key for item in items}) < len(items):
        raise UsageError(f"{path} names a custom_id twice: each must be its own")
    return items


def _item(number: int, line: str) -> BatchItem:
    try:
        facts = json.loads(line)
    except ValueError as error:
        raise UsageError(f"line {number} is not JSON: {error}") from None
    if not isinstance(facts, dict):
        raise UsageError(f"line {number} is not an object with prompt or messages")
    key, body = str(facts.get("custom_id", number)), facts.get("body", facts)
    if not isinstance(body, dict) or ("prompt" in body) == ("messages" in body):
        raise UsageError(f"line {number} needs either prompt or messages")
    prompt: Any = body.get("prompt", body.get("messages"))
    ignored = {"prompt", "messages", "custom_id", "model"}
    if unknown := sorted(set(body) - ignored - set(BODY_OPTIONS)):
        raise UsageError(f"line {number} has the field {unknown[0]!r}; known are {', '.join(BODY_OPTIONS)}")
    return BatchItem(key, prompt, {name: body[name] for name in BODY_OPTIONS if name in body})


def check_output(path: Path) -> None:
    """Raises ``UsageError`` for a path at which there can be no file of answers, before a model is loaded."""
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is no regular file: give the path of a new one, or of one with answers")
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent} is not a folder: create it, or write the answers elsewhere")


class Output:
    """The file of answers: one line each, appended as they come. Half a line, left by a crash, is cut off."""

    def __init__(self, path: Path) -> None:
        """Open or continue ``path``.

        Raises:
            UsageError: it can't be written, or holds something other than answers.
        """
        try:
            self._file = path.open("a+b")
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror or error}") from None
        self._file.seek(0)
        data = self._file.read()
        whole = data[: data.rfind(b"\n") + 1]
        try:
            # What failed is tried again, so only answers count as done.
            self.done = {str(f["custom_id"]) for f in map(json.loads, whole.splitlines()) if "error" not in f}
        except (ValueError, TypeError, KeyError):
            self._file.close()
            raise UsageError(f"{path} holds something other than answers: choose another --output") from None
        self._file.truncate(len(whole))

    def write(self, outcome: Outcome) -> None:
        self._file.write(outcome.line().encode())
        self._file.flush()

    def close(self) -> None:
        os.fsync(self._file.fileno())
        self._file.close()


def run_batch(
    llm: "LLM",
    terminal: Terminal,
    items: list[BatchItem],
    options: Mapping[str, Any],
    *,
    chat: bool,
    output: Path | None,
) -> int:
    """Answer all items and print or write them; 1 if any failed."""
    file = Output(output) if output else None
    if file is not None and file.done:
        terminal.note(f"{len(file.done)} answers are in {output} already")
    left = [item for item in items if file is None or item.key not in file.done]
    terminal.write(f"Batch: {len(left)} prompts\n")
    outcomes: dict[str, Outcome] = {}
    clock = Clock()

    async def collect() -> None:
        async for outcome in answered(llm, left, options, clock, chat=chat):
            outcomes[outcome.item.key] = outcome
            if file is not None:
                file.write(outcome)

    try:
        asyncio.run(collect())
    finally:
        if file is not None:
            file.close()
    terminal.write(f"[batch={len(left)} | {clock.text(list(outcomes.values()))}]\n")
    for number, item in enumerate(left, 1):
        outcome = outcomes[item.key]
        if file is None:
            answer = outcome.error if outcome.completion is None else outcome.completion.text
            terminal.write(f"--- Prompt {number} ---\n{answer}\n")
        elif outcome.completion is None:
            terminal.note(f"prompt {item.key} failed: {outcome.error}")
    return int(any(outcome.completion is None for outcome in outcomes.values()))


class Clock:
    """When the batch began, and when the first and the last of its prompts had run."""

    def __init__(self) -> None:
        self.start = self.first = self.last = time.perf_counter()

    def prompt_has_run(self) -> None:
        self.last = time.perf_counter()
        if self.first == self.start:
            self.first = self.last

    def text(self, outcomes: list[Outcome]) -> str:
        """Speeds of the batch: prompts up to the last one's first token, answers from the first one's on."""
        done = [o.completion for o in outcomes if o.completion is not None]
        prefilled = sum(c.timings.prefill_tokens for c in done)
        decoded = sum(len(c.token_ids) for c in done)
        prefill_s, decode_s = self.last - self.start, time.perf_counter() - self.first
        return (
            f"prefill: {prefilled} tok @ {rate(prefilled / max(prefill_s, 1e-9))} t/s | "
            f"decode: {decoded} tok @ {rate(decoded / max(decode_s, 1e-9))} t/s"
        )


async def answered(
    llm: "LLM", items: list[BatchItem], options: Mapping[str, Any], clock: Clock, *, chat: bool
) -> AsyncIterator[Outcome]:
    """The outcomes as they come, with at most ``IN_FLIGHT`` prompts begun at a time."""
    places = asyncio.Semaphore(IN_FLIGHT)

    async def answer(item: BatchItem) -> Outcome:
        prompt: Any = item.prompt
        if chat and isinstance(prompt, str):
            prompt = [{"role": "user", "content": prompt}]
        async with places:
            completion, began = None, False
            try:
                (started,) = llm.start(prompt, **{**options, **item.options})
                async for event in started:
                    if not began:
                        began = True
                        clock.prompt_has_run()
                    completion = event.completion
            except NanollamaError as failure:
                return Outcome(item, None, str(failure))
            return Outcome(item, completion)

    for finished in asyncio.as_completed([asyncio.create_task(answer(item)) for item in items]):
        yield await finished
