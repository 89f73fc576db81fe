"""An answer on its way: TokenEvents of the engine in, TextEvents for a reader out.

The last event carries the Completion, which is the fold of all the others; streamed and whole replies can't
differ.
"""

import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager

from nanollama.engine.generation import Generation, State
from nanollama.errors import NanollamaError
from nanollama.text.stream import TextStream
from nanollama.text.tokenizer import Tokenizer
from nanollama.types import Completion, Logprob, TextEvent, Timings, TokenEvent

ABORTED = "the answer was aborted"


class Answer:
    """One answer. Iterate it once, with ``for`` or ``async for``, or listen to it; leaving early aborts it.

    ``dropped_messages`` and ``dropped_tokens`` count what the context policy left out of the prompt.
    """

    def __init__(
        self, generation: Generation, tokenizer: Tokenizer, dropped_messages: int = 0, dropped_tokens: int = 0
    ) -> None:
        self.prompt_ids = generation.request.prompt_ids
        self.dropped_messages = dropped_messages
        self.dropped_tokens = dropped_tokens
        self._generation = generation
        self._fold = _Fold(self, tokenizer)

    @property
    def progress(self) -> tuple[State, int, int]:
        """Where the answer is: its state, and how many of its tokens so far have run, out of how many."""
        generation = self._generation
        return generation.state, generation.done_tokens, len(self.prompt_ids)

    def abort(self) -> None:
        """End the answer; its slot and blocks are free within one step. Any thread, any number of times."""
        self._generation.abort()

    def __iter__(self) -> Iterator[TextEvent]:
        with self._reading():
            for token in self._generation:
                if (event := self._fold.push(token)) is not None:
                    yield event
                if self._fold.is_over:
                    return

    async def __aiter__(self) -> AsyncIterator[TextEvent]:
        with self._reading():
            async for token in self._generation:
                if (event := self._fold.push(token)) is not None:
                    yield event
                if self._fold.is_over:
                    return

    def listen(self, put: Callable[[TextEvent | Exception], None]) -> None:
        """Have the running event loop call ``put`` with each event as it comes, or with what went wrong.

        The last call is that with the completion or with an exception. It takes no task to listen, so a token
        costs no switch of tasks.
        """

        def news() -> None:
            if self._fold.is_over:
                return
            try:
                for token in self._generation.take():
                    if not isinstance(token, TokenEvent):
                        raise token or NanollamaError(ABORTED)
                    if (event := self._fold.push(token)) is not None:
                        put(event)
                    if self._fold.is_over:
                        break
            except Exception as error:  # whatever it is: the reader is to be told
                self._fold.is_over = True
                self._generation.abort()
                put(error)
            if self._fold.stopped_early:
                self._generation.abort()

        self._generation.listen(news)
        news()

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Tells an end from an abort, and ends in the engine what nobody reads on."""
        try:
            yield
            if not self._fold.is_over:
                raise NanollamaError(ABORTED)
        finally:
            if not self._fold.is_over or self._fold.stopped_early:
                self._generation.abort()


def fold(events: Iterable[TextEvent]) -> Completion:
    """The whole answer of an event stream."""
    completion = None
    for event in events:
        completion = event.completion
    assert completion is not None, "an event stream ends with its completion"
    return completion


class _Fold:
    """Collects tokens into text and, at the end, into a Completion."""

    def __init__(self, answer: Answer, tokenizer: Tokenizer) -> None:
        self.is_over = False
        self.stopped_early = False  # by a stop string, which the engine knows nothing of
        self._answer = answer
        self._generation = answer._generation
        self._request = self._generation.request
        self._text = TextStream(tokenizer, self._request.stop)
        self._pieces: list[str] = []
        self._token_ids: list[int] = []
        self._logprobs: list[Logprob] = []
        self._starts: list[int] = []  # of each of them, where its token begins in the text
        self._prompt_logprobs: tuple[Logprob, ...] = ()
        self._cached = 0
        self._start = self._first = time.perf_counter()

    def push(self, token: TokenEvent) -> TextEvent | None:
        """Take a token in; the text that became final with it, if any, or the last event."""
        now = time.perf_counter()
        if not self._token_ids:
            self._first, self._cached = now, token.cached_tokens
            self._prompt_logprobs = token.prompt_logprobs
        self._token_ids.append(token.token_id)
        if token.logprob is not None:
            self._logprobs.append(token.logprob)
            self._starts.append(self._text.decoded)
        ends_turn = token.finish_reason == "stop"
        piece = "" if ends_turn else self._text.push(token.token_id)
        if self._text.stopped or token.finish_reason is not None:
            return self._last(piece, token, now)
        if not piece:  # log-probabilities wait for the text they belong to
            return None
        self._pieces.append(piece)
        return self._event(piece)

    def _last(self, piece: str, token: TokenEvent, now: float) -> TextEvent:
        self.is_over = True
        self.stopped_early = token.finish_reason is None
        piece += self._text.flush()
        self._pieces.append(piece)
        if self._text.stopped:  # of a stop string nothing is shown
            shown = sum(map(len, self._pieces))
            kept = zip(self._logprobs, self._starts, strict=True)
            self._logprobs = [logprob for logprob, start in kept if start < shown]
        began = self._generation.started or self._start
        timings = Timings(
            prefill_tokens=len(self._request.prompt_ids) - self._cached,
            prefill_s=self._first - began,
            decode_tokens=len(self._token_ids) - 1,
            decode_s=now - self._first,
            cached_tokens=self._cached,
            queue_s=max(0.0, began - self._start),
        )
        completion = Completion(
            text="".join(self._pieces),
            token_ids=tuple(self._token_ids),
            finish_reason="stop" if self._text.stopped else token.finish_reason or "stop",
            prompt_tokens=len(self._request.prompt_ids),
            timings=timings,
            dropped_messages=self._answer.dropped_messages,
            dropped_tokens=self._answer.dropped_tokens,
        )
        return self._event(piece, completion)

    def _event(self, piece: str, completion: Completion | None = None) -> TextEvent:
        event = TextEvent(piece, completion, tuple(self._logprobs), self._prompt_logprobs)
        self._logprobs, self._starts, self._prompt_logprobs = [], [], ()
        return event
