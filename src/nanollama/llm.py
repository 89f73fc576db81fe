"""The Python API: a model name in, a loaded LLM out, which answers prompts and conversations.

The command line and the server call this too. Every whole answer is the fold of the same events that
streaming shows.
"""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, get_args

from nanollama.backends.select import BackendChoice, load_backend
from nanollama.errors import TemplateError, UsageError
from nanollama.sampling.params import model_settings, sampling_params
from nanollama.text.chat import fit_chat
from nanollama.text.stream import TextStream
from nanollama.types import (
    DEFAULT_MODEL,
    Completion,
    ContextPolicy,
    FinishReason,
    Message,
    Request,
    TextEvent,
    Timings,
    TokenEvent,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from nanollama.model.checkpoint import Checkpoint
    from nanollama.store.transfer import Progress
    from nanollama.text.template import ChatTemplate

Messages = Sequence[Message | Mapping[str, str]]

DEFAULT_MAX_CONTEXT = 8192
"""The context window where none is asked for, unless the model's own is smaller: it fits small machines."""


class LLM:
    """A loaded model. Use it as a context manager, or call :meth:`close`.

    >>> with LLM("smollm2") as llm:  # doctest: +SKIP
    ...     llm.chat([{"role": "user", "content": "What is the capital of France?"}]).text
    """

    def __init__(
        self,
        model: str = DEFAULT_MODEL,
        *,
        backend: str = "auto",
        device: str = "auto",
        dtype: str | None = None,
        threads: int | None = None,
        n_ctx: int | None = None,
        progress: "Progress | None" = None,
        notice: Callable[[str], None] = warnings.warn,
    ) -> None:
        """Find, if need be fetch, and load a model.

        Args:
            model: a name from the catalogue or the path of a ``.gguf`` file.
            backend: ``native`` (CPU kernels), ``torch``, or ``auto`` for the fastest that can run the model.
            device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
            dtype: ``float32``, ``float16`` or ``bfloat16``, on the torch backend; ``None`` takes what suits.
            threads: CPU threads; ``None`` takes as many as there are physical cores.
            n_ctx: size of the context window in tokens; ``None`` takes the model's, at most 8192.
            progress: told how a download goes on.
            notice: told when a slower way had to be taken.

        Raises:
            NanollamaError: one of its kinds, with a sentence that says what to do.
        """
        from nanollama.store.store import resolve

        choice = BackendChoice(backend, device, dtype, threads)
        self.name = model
        self.path: Path = resolve(model, progress=progress)
        start = time.perf_counter()
        self._load(choice, n_ctx, notice)
        self.load_s = time.perf_counter() - start

    def _load(self, choice: BackendChoice, n_ctx: int | None, notice: Callable[[str], None]) -> None:
        from nanollama.engine.engine import Engine
        from nanollama.model.checkpoint import open_gguf
        from nanollama.text.tokenizer import Tokenizer

        checkpoint = open_gguf(self.path)
        try:
            self.spec = checkpoint.spec
            self.n_ctx = _context(n_ctx, self.spec.max_context)
            self.tokenizer = Tokenizer.from_gguf(checkpoint.metadata)
            self._template = self._chat_template(checkpoint)
            self._model_settings = {**model_settings(checkpoint.metadata), **_recommended(self.name)}
            self.loaded = load_backend(
                choice, self.spec, checkpoint.tensors, cache_tokens=self.n_ctx, notice=notice
            )
            self.engine = Engine(self.loaded.backend, self.n_ctx)
        finally:
            checkpoint.close()

    def _chat_template(self, checkpoint: "Checkpoint") -> "ChatTemplate | None":
        source = checkpoint.chat_template
        if source is None:
            return None
        from nanollama.text.template import ChatTemplate

        return ChatTemplate(source, bos_token=self.tokenizer.bos_text, eos_token=self.tokenizer.eos_text)

    @property
    def device(self) -> str:
        """Where the model runs: ``cpu``, ``cuda`` or ``mps``."""
        return self.loaded.device

    @property
    def dtype(self) -> str:
        """What it computes in; ``as stored`` on the native backend."""
        return self.loaded.dtype

    @property
    def has_template(self) -> bool:
        """Whether the model knows how a conversation is written; base models don't."""
        return self._template is not None

    def generate(self, prompt: str, **options: Any) -> Completion:
        """Continue a text; the options are those of :meth:`events`."""
        return fold(self.events(prompt, **options))

    def chat(self, messages: Messages, **options: Any) -> Completion:
        """Answer a conversation; the options are those of :meth:`events`."""
        return fold(self.events(messages, **options))

    def stream(self, prompt: str | Messages, **options: Any) -> Iterator[str]:
        """The answer's text piece by piece; the options are those of :meth:`events`."""
        for event in self.events(prompt, **options):
            if event.text:
                yield event.text

    def events(
        self,
        prompt: str | Messages,
        *,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        system: str | None = None,
        context_policy: ContextPolicy = "drop_oldest",
        parse_special: bool = False,
        **sampling: Any,
    ) -> Iterator[TextEvent]:
        """Generate and yield text as it becomes final; the last event carries the Completion.

        Args:
            prompt: a text to continue, or the messages of a conversation (``role`` and ``content``) to
            answer. max_tokens: most tokens to generate; ``None`` goes on to the end of the context window.
            stop: texts that end the answer; they are not part of it. system: a system prompt put before the
            messages. context_policy: what to do when a conversation is too long; see ContextPolicy.
            parse_special: recognise control tokens in a text prompt. Messages never contain control tokens.
            sampling: temperature, top_k, top_p, min_p, repeat_penalty, repeat_last_n, presence_penalty,
                frequency_penalty, logit_bias, seed. What is not given comes from the model's own settings,
                then from the defaults (temperature 0.8, top_k 50, top_p 0.9, repeat_penalty 1.1 over 64
                tokens).

        Raises:
            UsageError: an option is unknown or out of range.
            ContextOverflowError: the prompt does not fit the context window.
            TemplateError: the model has no chat template, or it refused the messages.
        """
        params = sampling_params(sampling, self._model_settings, vocab_size=self.spec.vocab_size)
        limit = _max_tokens(max_tokens, self.n_ctx)
        stops = _stop_strings(stop)
        dropped_messages = dropped_tokens = 0
        if isinstance(prompt, str):
            if system is not None:
                raise UsageError("a system prompt needs a conversation; pass messages instead of a text")
            ids = tuple(self.tokenizer.encode(prompt, add_special=True, parse_special=parse_special))
        else:
            fitted = fit_chat(
                _conversation(prompt, system),
                render_ids=self._chat_ids,
                max_prompt_tokens=self.n_ctx - self._answer_room(max_tokens),
                policy=_policy(context_policy),
            )
            ids, dropped_messages, dropped_tokens = (
                fitted.prompt_ids,
                fitted.dropped_messages,
                fitted.dropped_tokens,
            )
        if not ids:
            raise UsageError("the prompt is empty; give the model at least one token to continue")
        request = Request(ids, params, limit, self.tokenizer.stop_ids, stops)
        return self._run(request, dropped_messages, dropped_tokens)

    def logits(self, token_ids: Sequence[int]) -> "NDArray[np.float32]":
        """The float32 logits ``[n, vocab]`` for the token after each of the n given ones.

        Raises:
            UsageError: no ids, an id outside the vocabulary, or more ids than the context window holds.
        """
        if not 1 <= len(token_ids) <= self.n_ctx:
            raise UsageError(f"{len(token_ids)} token ids were given; expected 1 to {self.n_ctx}")
        for token_id in token_ids:
            if not 0 <= token_id < self.spec.vocab_size:
                raise UsageError(
                    f"token id {token_id} is not in the vocabulary of {self.spec.vocab_size} tokens"
                )
        return self.engine.score(token_ids)

    def close(self) -> None:
        """Release the weights and the cache; closing twice does no harm."""
        self.loaded.backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _chat_ids(self, messages: Sequence[Message]) -> list[int]:
        if self._template is None:
            raise TemplateError(
                f"the model {self.name} has no chat template, so it can only continue a text; "
                "give it a prompt instead of messages, or use an instruct model"
            )
        prompt = self._template.render(messages, control_tokens=self.tokenizer.control_tokens)
        return self.tokenizer.encode(prompt, add_special=True, parse_special=True)

    def _answer_room(self, max_tokens: int | None) -> int:
        """Tokens that a conversation leaves free for its answer: an eighth, or what was asked for."""
        return max(1, min(max_tokens or self.n_ctx // 8, self.n_ctx // 2))

    def _run(self, request: Request, dropped_messages: int, dropped_tokens: int) -> Iterator[TextEvent]:
        text = TextStream(self.tokenizer, request.stop)
        pieces: list[str] = []
        token_ids: list[int] = []
        finish: FinishReason = "length"
        start = first = now = time.perf_counter()
        cached = 0
        for event in self.engine.run(request):
            now = time.perf_counter()
            if not token_ids:
                first, cached = now, event.cached_tokens
            token_ids.append(event.token_id)
            piece = "" if _ends_turn(event, request) else text.push(event.token_id)
            if event.finish_reason is not None or text.stopped:
                finish = "stop" if text.stopped else event.finish_reason or finish
                break
            if piece:
                pieces.append(piece)
                yield TextEvent(piece)
        else:
            piece = ""
        tail = piece + text.flush()
        timings = Timings(
            prefill_tokens=len(request.prompt_ids) - cached,
            prefill_s=first - start,
            decode_tokens=max(0, len(token_ids) - 1),
            decode_s=now - first,
            cached_tokens=cached,
        )
        whole = "".join(pieces) + tail
        completion = Completion(
            whole,
            tuple(token_ids),
            finish,
            len(request.prompt_ids),
            timings,
            dropped_messages,
            dropped_tokens,
        )
        yield TextEvent(tail, completion)


def fold(events: Iterator[TextEvent]) -> Completion:
    """The whole answer of an event stream."""
    completion = None
    for event in events:
        completion = event.completion
    assert completion is not None, "an event stream ends with its completion"
    return completion


def _recommended(model: str) -> Mapping[str, float]:
    """The sampling settings that the catalogue knows for a model's name."""
    from nanollama.store.catalogue import find_entry
    from nanollama.store.names import ModelName

    try:
        entry = find_entry(ModelName.parse(model))
    except UsageError:  # a path
        return {}
    return {} if entry is None else entry.sampling


def _ends_turn(event: TokenEvent, request: Request) -> bool:
    return event.token_id in request.stop_ids


def _context(n_ctx: int | None, max_context: int) -> int:
    if n_ctx is None:
        return min(max_context, DEFAULT_MAX_CONTEXT)
    if isinstance(n_ctx, bool) or not 8 <= n_ctx <= max_context:
        raise UsageError(
            f"the context window asked for is {n_ctx} tokens; this model takes 8 to {max_context}"
        )
    return n_ctx


def _max_tokens(max_tokens: int | None, n_ctx: int) -> int:
    if max_tokens is None:
        return n_ctx
    if isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < 1:
        raise UsageError(f"max_tokens is {max_tokens!r}; expected a whole number of at least 1")
    return max_tokens


def _stop_strings(stop: Sequence[str]) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    if len(stops) > 16 or not all(isinstance(s, str) and 0 < len(s) <= 256 for s in stops):
        raise UsageError("stop takes up to 16 texts of 1 to 256 characters each")
    return stops


def _policy(policy: ContextPolicy) -> ContextPolicy:
    if policy in get_args(ContextPolicy):
        return policy
    raise UsageError(f"context_policy is {policy!r}; expected drop_oldest or error")


def _conversation(messages: Messages, system: str | None) -> list[Message]:
    """Messages as Message objects, the system prompt first.

    Raises:
        UsageError: there are none, or one has no role or no text.
    """
    turns = [Message("system", system)] if system is not None else []
    for i, message in enumerate(messages):
        turn = message if isinstance(message, Message) else _message(message, i)
        turns.append(turn)
    if not turns or turns[-1].role == "system":
        raise UsageError("the conversation has no message to answer; add one with role user")
    return turns


def _message(message: Mapping[str, str], index: int) -> Message:
    if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
        raise UsageError(f"message {index} is {message!r:.80}; expected the two fields role and content")
    role, content = message["role"], message["content"]
    if not isinstance(role, str) or not isinstance(content, str):
        raise UsageError(f"message {index} has a role or content that is not a text")
    return Message(role, content)
