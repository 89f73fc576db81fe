"""What OpenAI's clients read, byte for byte: text events in, stream chunks and whole replies out.

Plain dictionaries, no framework. A whole reply is the fold of the chunks that a stream would have sent.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Protocol

from nanollama.types import Completion, Logprob

JSON = dict[str, Any]

DONE = b"data: [DONE]\n\n"
LEAST_LOGPROB = -9999.0
"""OpenAI's stand-in for minus infinity, which JSON can't say."""

_encode = json.JSONEncoder(separators=(",", ":")).encode


class TokenTexts(Protocol):
    """What is needed of a tokenizer."""

    def token_bytes(self, token_id: int, *, skip_special: bool = True) -> bytes: ...


def spelled(value: Mapping[str, Any]) -> bytes:
    """The JSON of an object, without spaces and in ASCII: some clients take U+2028 for the end of a line."""
    return _encode(value).encode("ascii")


def quoted(text: str) -> bytes:
    """The JSON of a text."""
    return _encode(text).encode("ascii")


def comment(text: str) -> bytes:
    """A line that clients skip; it shows them, and everything in between, that the connection lives."""
    return f": {text}\n\n".encode()


def usage_of(completions: Sequence[Completion], per_prompt: int, *, reports_drops: bool = False) -> JSON:
    """Token counts of all choices; each prompt counts once however many answers it got."""
    prompts = completions[::per_prompt]
    prompt = sum(each.prompt_tokens for each in prompts)
    answer = sum(len(each.token_ids) for each in completions)
    details = {"cached_tokens": sum(each.timings.cached_tokens for each in prompts), "audio_tokens": 0}
    if reports_drops:
        details["dropped_messages"] = sum(each.dropped_messages for each in prompts)
        details["dropped_tokens"] = sum(each.dropped_tokens for each in prompts)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
        "prompt_tokens_details": details,
    }


@dataclass(frozen=True)
class Wire:
    """The frame that all chunks of one reply share."""

    id: str
    model: str
    created: int
    fingerprint: str
    tokens: TokenTexts
    includes_usage: bool = False

    object = ""

    def frame(self, choices: list[JSON], usage: JSON | None = None) -> JSON:
        chunk: JSON = {
            "id": self.id,
            "object": self.object,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        }
        if self.includes_usage or usage is not None:
            chunk["usage"] = usage
        return chunk

    def delta(self, index: int, text: str, logprobs: Sequence[Logprob]) -> JSON:
        raise AssertionError("a kind of wire says what a piece of an answer looks like")

    def around_text(self, index: int) -> tuple[bytes, bytes]:
        """What comes before and after the text in the JSON of each delta that holds nothing else."""
        before, _, after = spelled(self.delta(index, "", ())).rpartition(b'""')
        return before, after

    def usage(self, usage: JSON) -> JSON:
        """The last chunk of a stream that was asked for its usage: no choices."""
        return self.frame([], usage)

    def token_text(self, token_id: int) -> str:
        return self.tokens.token_bytes(token_id, skip_special=False).decode("utf-8", "replace")


class ChatWire(Wire):
    """Chunks of ``POST /v1/chat/completions``."""

    object = "chat.completion.chunk"

    def first(self, index: int) -> JSON:
        return self._chunk(index, {"role": "assistant", "content": "", "refusal": None})

    def delta(self, index: int, text: str, logprobs: Sequence[Logprob]) -> JSON:
        shown = {"content": [self._logprob(each) for each in logprobs], "refusal": None} if logprobs else None
        return self._chunk(index, {"content": text}, shown)

    def last(self, index: int, finish_reason: str) -> JSON:
        return self._chunk(index, {}, finish_reason=finish_reason)

    def _chunk(
        self, index: int, delta: JSON, logprobs: JSON | None = None, finish_reason: str | None = None
    ) -> JSON:
        return self.frame(
            [{"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}]
        )

    def _logprob(self, logprob: Logprob) -> JSON:
        return {
            **self._token(logprob.token_id, logprob.logprob),
            "top_logprobs": [self._token(token_id, value) for token_id, value in logprob.top],
        }

    def _token(self, token_id: int, logprob: float) -> JSON:
        raw = self.tokens.token_bytes(token_id, skip_special=False)
        return {
            "token": raw.decode("utf-8", "replace"),
            "logprob": max(logprob, LEAST_LOGPROB),
            "bytes": list(raw),
        }


@dataclass(frozen=True)
class CompletionWire(Wire):
    """Chunks of ``POST /v1/completions``. ``offsets`` counts the characters of each choice's tokens."""

    offsets: dict[int, int] = field(default_factory=dict)

    object = "text_completion"

    def echo(self, index: int, text: str, prompt_ids: Sequence[int], logprobs: Sequence[Logprob]) -> JSON:
        """The prompt itself, whose first token has no probability. Without ``logprobs`` its text alone."""
        if not logprobs:
            return self._chunk(index, text)
        shown = self._logprobs(index, logprobs, first=prompt_ids[0])
        return self._chunk(index, text, shown)

    def delta(self, index: int, text: str, logprobs: Sequence[Logprob]) -> JSON:
        return self._chunk(index, text, self._logprobs(index, logprobs) if logprobs else None)

    def last(self, index: int, finish_reason: str) -> JSON:
        return self._chunk(index, "", finish_reason=finish_reason)

    def _chunk(
        self, index: int, text: str, logprobs: JSON | None = None, finish_reason: str | None = None
    ) -> JSON:
        return self.frame(
            [{"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}]
        )

    def _logprobs(self, index: int, logprobs: Sequence[Logprob], first: int | None = None) -> JSON:
        ids = [each.token_id for each in logprobs]
        values: list[float | None] = [max(each.logprob, LEAST_LOGPROB) for each in logprobs]
        tops: list[JSON | None] = [self._top(each) for each in logprobs]
        if first is not None:
            ids, values, tops = [first, *ids], [None, *values], [None, *tops]
        offset = self.offsets.get(index, 0)
        offsets = []
        for token_id in ids:
            offsets.append(offset)
            offset += len(self.tokens.token_bytes(token_id).decode("utf-8", "replace"))
        self.offsets[index] = offset
        return {
            "tokens": [self.token_text(token_id) for token_id in ids],
            "token_logprobs": values,
            "top_logprobs": tops,
            "text_offset": offsets,
        }

    def _top(self, logprob: Logprob) -> JSON:
        best: JSON = {}
        for token_id, value in logprob.top:
            best.setdefault(self.token_text(token_id), max(value, LEAST_LOGPROB))
        return best


def fold_chat(chunks: Iterable[JSON]) -> JSON:
    """The whole reply that the chunks of a chat make up."""
    reply, choices = _fold(chunks)
    reply["object"] = "chat.completion"
    reply["choices"] = []
    for index, parts in sorted(choices.items()):
        content = "".join(part["delta"].get("content", "") for part in parts)
        logprobs = [part["logprobs"]["content"] for part in parts if part["logprobs"]]
        reply["choices"].append(
            {
                "index": index,
                "message": {"role": "assistant", "content": content, "refusal": None},
                "logprobs": {"content": list(chain(*logprobs)), "refusal": None} if logprobs else None,
                "finish_reason": parts[-1]["finish_reason"],
            }
        )
    return reply


def fold_completion(chunks: Iterable[JSON]) -> JSON:
    """The whole reply that the chunks of a completion make up."""
    reply, choices = _fold(chunks)
    reply["choices"] = []
    for index, parts in sorted(choices.items()):
        logprobs = [part["logprobs"] for part in parts if part["logprobs"]]
        folded = _joined(logprobs) if logprobs else None
        reply["choices"].append(
            {
                "index": index,
                "text": "".join(part["text"] for part in parts),
                "logprobs": folded,
                "finish_reason": parts[-1]["finish_reason"],
            }
        )
    return reply


def _joined(logprobs: Sequence[JSON]) -> JSON:
    return {name: list(chain.from_iterable(each[name] for each in logprobs)) for name in logprobs[0]}


def _fold(chunks: Iterable[JSON]) -> tuple[JSON, dict[int, list[JSON]]]:
    reply: JSON = {}
    choices: dict[int, list[JSON]] = {}
    for chunk in chunks:
        reply.update(chunk)
        for choice in chunk["choices"]:
            choices.setdefault(choice["index"], []).append(choice)
    return reply, choices
