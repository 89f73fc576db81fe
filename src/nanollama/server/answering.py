"""OpenAI's jobs: a checked request in, running answers out; their events in, chunks out."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from nanollama.errors import ContextOverflowError, NanollamaError
from nanollama.server.fields import ChatRequest, CompletionRequest
from nanollama.server.jobs import Keep, Opened
from nanollama.server.problems import JSON, invalid
from nanollama.server.wire import (
    ChatWire,
    CompletionWire,
    fold_chat,
    fold_completion,
    quoted,
    spelled,
    usage_of,
)
from nanollama.types import Completion, Logprob, TextEvent

if TYPE_CHECKING:
    from nanollama.answer import Answer
    from nanollama.llm import LLM
    from nanollama.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class OpenAIJob:
    """A request of OpenAI's API; see :class:`nanollama.server.jobs.Job`."""

    request: ChatRequest | CompletionRequest
    keep: Keep | None = None
    n_ctx: int | None = None

    @property
    def model(self) -> str:
        return self.request.model

    @property
    def streams(self) -> bool:
        return bool(self.request.stream)

    @property
    def choices(self) -> int:
        return self.request.choices

    def start(self, llm: "LLM", salt: str) -> "list[Answer]":
        return start_answers(llm, self.request, salt)

    def explain(self, error: NanollamaError) -> Exception:
        if not isinstance(error, ContextOverflowError):
            return error
        where = "messages" if isinstance(self.request, ChatRequest) else "prompt"
        return invalid(str(error), where, "context_length_exceeded")

    def reply(self, opened: Opened) -> "Chunker":
        chat = isinstance(self.request, ChatRequest)
        wire = (ChatWire if chat else CompletionWire)(
            id=("chatcmpl-" if chat else "cmpl-") + opened.id.removeprefix("req_"),
            model=self.request.model,
            created=int(time.time()),
            fingerprint=f"fp_{opened.version}",
            tokens=opened.llm.tokenizer,
            includes_usage=self.request.includes_usage,
        )
        return Chunker(self.request, wire, opened.llm.tokenizer, opened.prompt_ids)


def start_answers(llm: "LLM", request: ChatRequest | CompletionRequest, salt: str) -> "list[Answer]":
    """Render, tokenize and submit; takes a while for a long prompt.

    Raises:
        NanollamaError: the request does not suit the model; nothing of it runs then.
    """
    options: dict[str, Any] = {
        "n": request.n or 1,
        "stop": request.stops,
        "min_tokens": request.min_tokens or 0,
        "ignore_eos": bool(request.ignore_eos),
        "context_policy": request.context_policy or "error",
        "salt": salt,
        **request.sampling(),
    }
    if isinstance(request, ChatRequest):
        return llm.start(
            request.messages,
            max_tokens=request.token_limit,
            logprobs=request.alternatives,
            add_generation_prompt=request.add_generation_prompt is not False,
            template_kwargs=request.chat_template_kwargs or {},
            **options,
        )
    options["parse_special"] = True  # whoever writes a whole prompt also writes its control tokens
    options["max_tokens"] = max(1, request.token_limit)
    options["logprobs"] = request.logprobs
    options["prompt_logprobs"] = request.logprobs if request.echo else None
    answers: list[Answer] = []
    try:
        for prompt in request.prompts:
            answers += llm.start(prompt, **options)
    except BaseException:
        for answer in answers:
            answer.abort()
        raise
    return answers


class Chunker:
    """Makes the chunks of all choices, in the order in which their events come.

    ``prompt_ids`` are those of each choice. ``completions`` collects what is complete.
    """

    def __init__(
        self,
        request: ChatRequest | CompletionRequest,
        wire: ChatWire | CompletionWire,
        tokenizer: "Tokenizer",
        prompt_ids: Sequence[tuple[int, ...]],
    ) -> None:
        self.completions: dict[int, Completion] = {}
        self._request = request
        self._wire = wire
        self._tokenizer = tokenizer
        self._prompt_ids = prompt_ids
        self._begun: set[int] = set()
        self._around: dict[int, tuple[bytes, bytes]] = {}
        # The engine can't generate nothing: where only the prompt is wanted, one token is made and left out.
        self._scores_only = isinstance(request, CompletionRequest) and request.max_tokens == 0

    def chunks(self, index: int, event: TextEvent) -> list[JSON]:
        """What one event becomes: role or echo before the first text, the reason after the last."""
        made = []
        if index not in self._begun:
            self._begun.add(index)
            made += self._opening(index, event)
        logprobs = self._shown(event)
        if not self._scores_only and (event.text or logprobs):
            made.append(self._wire.delta(index, event.text, logprobs))
        if event.completion is not None:
            completion = event.completion
            if self._scores_only:
                completion = replace(completion, token_ids=(), finish_reason="length")
            self.completions[index] = completion
            made.append(self._wire.last(index, completion.finish_reason))
        return made

    def spelled(self, index: int, event: TextEvent) -> list[bytes]:
        """The JSON of each of these chunks. What is the same in all chunks of text is spelled only once."""
        plain = event.text and event.completion is None and not event.logprobs and not self._scores_only
        if not plain or index not in self._begun:
            return [spelled(chunk) for chunk in self.chunks(index, event)]
        if index not in self._around:
            self._around[index] = self._wire.around_text(index)
        before, after = self._around[index]
        return [before + quoted(event.text) + after]

    def closing(self) -> list[JSON]:
        """The usage of all choices, where it is wanted: always in a whole reply."""
        if self._request.stream and not self._request.includes_usage:
            return []
        completions = [self.completions[index] for index in sorted(self.completions)]
        drops = self._request.context_policy == "drop_oldest"
        return [self._wire.usage(usage_of(completions, self._request.n or 1, reports_drops=drops))]

    def fold(self, chunks: Sequence[JSON]) -> JSON:
        """The whole reply that all chunks make up."""
        return fold_chat(chunks) if isinstance(self._wire, ChatWire) else fold_completion(chunks)

    def _opening(self, index: int, event: TextEvent) -> list[JSON]:
        if isinstance(self._wire, ChatWire):
            return [self._wire.first(index)]
        if not isinstance(self._request, CompletionRequest) or not self._request.echo:
            return []
        prompt = self._request.prompts[index // (self._request.n or 1)]
        text = prompt if isinstance(prompt, str) else self._tokenizer.decode(prompt)
        return [self._wire.echo(index, text, self._prompt_ids[index], event.prompt_logprobs)]

    def _shown(self, event: TextEvent) -> Sequence[Logprob]:
        """The logprobs of an event, but for that of a token that ended the turn, which is no text."""
        ended = event.completion is not None and event.completion.finish_reason == "stop"
        if ended and event.logprobs and event.logprobs[-1].token_id in self._tokenizer.stop_ids:
            return event.logprobs[:-1]
        return event.logprobs
