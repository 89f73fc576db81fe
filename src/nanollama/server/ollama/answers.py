"""Ollama's jobs: a checked request in, running answers out; their events in, lines out.

A whole reply is the fold of the lines that a stream would have sent.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nanollama.errors import ContextOverflowError, ModelNotFoundError, NanollamaError
from nanollama.server.jobs import Keep, Opened
from nanollama.server.ollama.durations import nanoseconds, now_text
from nanollama.server.ollama.fields import ChatRequest, GenerateRequest
from nanollama.server.problems import JSON, Problem, invalid
from nanollama.server.wire import LEAST_LOGPROB, spelled
from nanollama.types import Completion, Logprob, TextEvent

if TYPE_CHECKING:
    from nanollama.answer import Answer
    from nanollama.llm import LLM


@dataclass(frozen=True, slots=True)
class OllamaJob:
    """A request of Ollama's API that has something to answer; see :class:`nanollama.server.jobs.Job`."""

    request: ChatRequest | GenerateRequest
    choices: int = 1

    @property
    def model(self) -> str:
        return self.request.model

    @property
    def streams(self) -> bool:
        return self.request.streams

    @property
    def keep(self) -> Keep | None:
        return self.request.keep_alive

    @property
    def n_ctx(self) -> int | None:
        return self.request.settings.n_ctx

    def start(self, llm: "LLM", salt: str) -> "list[Answer]":
        request, settings = self.request, self.request.settings
        options: dict[str, Any] = {
            "max_tokens": settings.max_tokens,
            "stop": settings.stop,
            "n_ctx": settings.n_ctx,
            "logprobs": request.alternatives,
            "salt": salt,
            **settings.sampling_over(llm.own_settings),
        }
        if request.think is False:
            options["template_kwargs"] = {"enable_thinking": False}
        options["context_policy"] = "error" if request.truncate is False else "drop_oldest"
        if isinstance(request, ChatRequest):
            if not llm.has_template:
                raise invalid(f'"{request.model}" does not support chat', "model")
            return llm.start(request.messages or [], **options)
        return _generate(llm, request, options)

    def explain(self, error: NanollamaError) -> Exception:
        if isinstance(error, ModelNotFoundError):
            return not_found(self.model)
        if isinstance(error, ContextOverflowError):
            return invalid(str(error), "prompt", "context_length_exceeded")
        return error

    def reply(self, opened: Opened) -> "Lines":
        return Lines(self.request, opened)


def _generate(llm: "LLM", request: GenerateRequest, options: dict[str, Any]) -> "list[Answer]":
    prompt = request.prompt or ""
    if request.raw:
        return llm.start(prompt, parse_special=True, **options)
    if llm.has_template:
        turns = [{"role": "system", "content": request.system}] if request.system else []
        turns.append({"role": "user", "content": prompt})
        return llm.start(turns, context_ids=request.context or (), **options)
    if request.system:
        raise invalid(f'"{request.model}" has no chat template, so a system prompt has no place', "system")
    if request.context:
        options.pop("template_kwargs", None)
        ids = [*request.context, *llm.tokenizer.encode(prompt, add_special=False, parse_special=False)]
        return llm.start(ids, **options)
    return llm.start(prompt, **options)


def not_found(model: str) -> Problem:
    """Ollama's words for a model that is not on this machine."""
    return Problem(404, f"model '{model}' not found", "model_not_found", "model")


class Lines:
    """Makes the lines of one answer. ``completions`` holds it once it is complete."""

    def __init__(self, request: ChatRequest | GenerateRequest, opened: Opened) -> None:
        self.completions: dict[int, Completion] = {}
        self._request = request
        self._opened = opened
        self._tokenizer = opened.llm.tokenizer

    def chunks(self, index: int, event: TextEvent) -> list[JSON]:
        """A line for text, and the last one when the answer is complete."""
        made = []
        logprobs = self._shown(event)
        if event.text or logprobs:
            line = self._line(event.text, done=False)
            if logprobs:
                line["logprobs"] = [self._logprob(each) for each in logprobs]
            made.append(line)
        if event.completion is not None:
            self.completions[index] = event.completion
            made.append(self._last(event.completion))
        return made

    def spelled(self, index: int, event: TextEvent) -> list[bytes]:
        return [spelled(line) for line in self.chunks(index, event)]

    def closing(self) -> list[JSON]:
        return []

    def fold(self, chunks: Sequence[JSON]) -> JSON:
        """The last line with the text and the logprobs of all."""
        whole = dict(chunks[-1])
        logprobs = [each for chunk in chunks for each in chunk.get("logprobs", ())]
        if isinstance(self._request, ChatRequest):
            text = "".join(chunk["message"]["content"] for chunk in chunks)
            whole["message"] = {"role": "assistant", "content": text}
        else:
            whole["response"] = "".join(chunk["response"] for chunk in chunks)
        return {**whole, "logprobs": logprobs} if logprobs else whole

    def _line(self, text: str, *, done: bool) -> JSON:
        return bare_line(self._request, text, done=done)

    def _last(self, completion: Completion) -> JSON:
        timings = completion.timings
        line = self._line("", done=True)
        line["done_reason"] = completion.finish_reason
        line["total_duration"] = nanoseconds(time.monotonic() - self._opened.arrived)
        line["load_duration"] = nanoseconds(self._opened.load_s)
        line["prompt_eval_count"] = completion.prompt_tokens
        line["prompt_eval_duration"] = nanoseconds(timings.prefill_s)
        line["eval_count"] = len(completion.token_ids)
        line["eval_duration"] = nanoseconds(timings.decode_s)
        if timings.cached_tokens:  # of the prompt: they took no time
            line["cached_tokens"] = timings.cached_tokens
        if isinstance(self._request, GenerateRequest) and not self._request.raw:
            line["context"] = [*self._opened.prompt_ids[0], *completion.token_ids]
        if completion.dropped_messages:
            line["dropped_messages"] = completion.dropped_messages
            line["dropped_tokens"] = completion.dropped_tokens
        return line

    def _shown(self, event: TextEvent) -> Sequence[Logprob]:
        """The logprobs of an event, but for that of a token that ended the turn, which is no text."""
        ended = event.completion is not None and event.completion.finish_reason == "stop"
        if ended and event.logprobs and event.logprobs[-1].token_id in self._tokenizer.stop_ids:
            return event.logprobs[:-1]
        return event.logprobs

    def _logprob(self, logprob: Logprob) -> JSON:
        top = [self._token(token_id, value) for token_id, value in logprob.top]
        shown = self._token(logprob.token_id, logprob.logprob)
        return {**shown, "top_logprobs": top} if top else shown

    def _token(self, token_id: int, logprob: float) -> JSON:
        raw = self._tokenizer.token_bytes(token_id, skip_special=False)
        return {
            "token": raw.decode("utf-8", "replace"),
            "logprob": max(logprob, LEAST_LOGPROB),
            "bytes": list(raw),
        }


def bare_line(request: ChatRequest | GenerateRequest, text: str, *, done: bool) -> JSON:
    """What all lines of one kind have in common."""
    line: JSON = {"model": request.model, "created_at": now_text()}
    if isinstance(request, ChatRequest):
        line["message"] = {"role": "assistant", "content": text}
    else:
        line["response"] = text
    line["done"] = done
    return line
