"""The Python API: a model name in, a loaded LLM out, which answers prompts and conversations.

The command line and the server call this too. Every whole answer is the fold of the same events that
streaming shows.
"""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

from nanollama.answer import Answer, fold
from nanollama.backends.select import BackendChoice, load_backend
from nanollama.errors import NanollamaError, TemplateError, UsageError
from nanollama.inputs import (
    MAX_ANSWERS,
    MAX_LOGPROBS,
    Messages,
    answer_room,
    check_context,
    check_count,
    check_max_tokens,
    check_policy,
    check_recipe,
    check_room,
    check_stop,
    check_token_ids,
    conversation,
    with_seed,
)
from nanollama.sampling.params import sampling_params
from nanollama.text.chat import FittedChat, fit_chat
from nanollama.types import DEFAULT_MODEL, Completion, ContextPolicy, Message, Request, TextEvent

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from nanollama.engine.engine import EngineConfig
    from nanollama.model.checkpoint import Checkpoint
    from nanollama.store.transfer import Progress
    from nanollama.text.template import ChatTemplate

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
        quantize: str | None = None,
        compile: bool = False,
        cache_tokens: int | None = None,
        max_sequences: int = 32,
        max_queue: int | None = None,
        progress: "Progress | None" = None,
        notice: Callable[[str], None] = warnings.warn,
    ) -> None:
        """Find, if need be fetch, and load a model.

        Args:
            model: a name from the catalogue, the path of a ``.gguf`` file or of a checkpoint folder.
            backend: ``native`` (CPU kernels), ``torch``, or ``auto`` for the fastest that can run the model.
            device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
            dtype: ``float32``, ``float16`` or ``bfloat16``, on the torch backend; ``None`` takes what suits.
            threads: CPU threads; ``None`` takes as many as there are physical cores.
            n_ctx: size of the context window in tokens; ``None`` takes the model's, at most 8192.
            quantize: ``q8`` or ``q4`` quantizes wider matrices to that while loading; ``quantized`` says what
                it saved.
            compile: compile the model with torch.compile; a step of a new size then waits for the compiler.
            cache_tokens: size of the cache that all running answers share; ``None`` takes ``n_ctx``.
            max_sequences: answers that run at once; more wait.
            max_queue: answers that may wait; ``None`` sets no limit.
            progress: told how a download goes on.
            notice: told when a slower way had to be taken, and what is being compiled.

        Raises:
            NanollamaError: one of its kinds, with a sentence that says what to do.
        """
        from nanollama.engine.engine import EngineConfig
        from nanollama.store.parameters import settings_of
        from nanollama.store.store import locate

        choice = BackendChoice(backend, device, dtype, threads, compile, quantize is not None)
        self.name = model
        if quantize is not None:
            from nanollama.model.requantize import check_width

            check_width(quantize)
        located = locate(model, progress=progress)
        self.path: Path = located.path
        self.recipe = check_recipe(located.recipe)
        self._own = own = settings_of(self.recipe.parameters)
        if own.device is not None and device == "auto":
            choice = replace(choice, device=own.device)
        if threads is None:
            choice = replace(choice, threads=own.threads)
        start = time.perf_counter()
        limits = partial(EngineConfig, max_sequences=max_sequences, max_queue=max_queue)
        self._load(choice, n_ctx, quantize, cache_tokens, limits, notice)
        self.load_s = time.perf_counter() - start

    def _load(
        self,
        choice: BackendChoice,
        n_ctx: int | None,
        quantize: str | None,
        cache_tokens: int | None,
        limits: Callable[..., "EngineConfig"],
        notice: Callable[[str], None],
    ) -> None:
        from nanollama.engine.engine import Engine
        from nanollama.model.checkpoint import open_checkpoint

        checkpoint = open_checkpoint(self.path)
        try:
            own_ctx = self._own.n_ctx or DEFAULT_MAX_CONTEXT
            self.n_ctx = check_context(n_ctx, checkpoint.spec.max_context, own_ctx)
            self.spec = checkpoint.spec.for_context(self.n_ctx)
            if n_ctx is None and self._own.n_ctx and self.n_ctx < own_ctx:
                notice(f"num_ctx is {own_ctx}, and the model's context window has {self.n_ctx} tokens")
            self.num_parameters = checkpoint.num_parameters
            self._model_settings = {**checkpoint.sampling, **self._own.sampling}
            tensors = checkpoint.tensors
            self.quantized: str | None = None
            if quantize is not None:
                from nanollama.model.requantize import requantized

                tensors, self.quantized = requantized(tensors, quantize)
            self.loaded = load_backend(
                choice, self.spec, tensors, cache_tokens=cache_tokens or self.n_ctx, notice=notice
            )
            if quantize is not None and self.loaded.name == "torch":
                notice("the torch backend unpacks quantized weights at each use: less memory, and slower")
            try:
                # The native backend packs its weights meanwhile.
                self.tokenizer = checkpoint.tokenizer()
                self._template = self._chat_template(checkpoint)
                self.loaded.finish()
            except BaseException:
                self.loaded.backend.close()
                raise
            root = f"{self.path.resolve()} {quantize}".encode()
            self.engine = Engine(self.loaded.backend, limits(n_ctx=self.n_ctx, root=root))
        finally:
            checkpoint.close()

    def _chat_template(self, checkpoint: "Checkpoint") -> "ChatTemplate | None":
        source = checkpoint.chat_template if self.recipe.template is None else self.recipe.template
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
    def own_settings(self) -> Mapping[str, float]:
        """The sampling settings that come with the model; what it leaves open has a default."""
        return self._model_settings

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

    def events(self, prompt: str | Messages, **options: Any) -> Iterator[TextEvent]:
        """Generate and yield text as it becomes final; the last event carries the Completion.

        The options are those of :meth:`start`. Closing the iterator ends the answer.
        """
        (answer,) = self.start(prompt, **options)
        return iter(answer)

    def start(
        self,
        prompt: str | Sequence[int] | Messages,
        *,
        n: int = 1,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        system: str | None = None,
        context_policy: ContextPolicy = "drop_oldest",
        parse_special: bool = False,
        min_tokens: int = 0,
        ignore_eos: bool = False,
        logprobs: int | None = None,
        prompt_logprobs: int | None = None,
        priority: int = 0,
        salt: str = "",
        template_kwargs: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
        n_ctx: int | None = None,
        context_ids: Sequence[int] = (),
        **sampling: Any,
    ) -> list[Answer]:
        """Begin ``n`` answers to one prompt; they run together with whatever else runs.

        Args:
            prompt: a text or token ids to continue, or the messages of a conversation (``role`` and
                ``content``) to answer.
            n: answers to the same prompt, which is computed once. With a seed, answer i has the seed plus i.
            max_tokens: most tokens to generate; ``None`` takes the model's own limit, else goes on to the
                end of the context window.
            stop: texts that end the answer, beside the model's own; they are not part of it.
            system: a system prompt put before the messages; ``None`` takes the model's own.
            context_policy: what to do when a conversation is too long; see ContextPolicy.
            parse_special: recognise control tokens in a text prompt. Messages never contain control tokens.
            min_tokens: the model may not end its turn before so many tokens.
            ignore_eos: go on after the model has ended its turn.
            logprobs: report the log-probability of each token, and of so many likely alternatives (0 to 20).
            prompt_logprobs: the same for the tokens of the prompt.
            priority: a smaller one runs first.
            salt: answers with different salts share nothing in the cache.
            template_kwargs: further variables for the chat template.
            add_generation_prompt: end the conversation where the assistant begins to speak.
            n_ctx: a window for these answers that is smaller than the model's.
            context_ids: tokens of an earlier conversation that the messages go on from.
            sampling: temperature, top_k, top_p, min_p, repeat_penalty, repeat_last_n, presence_penalty,
                frequency_penalty, logit_bias, seed. What is not given comes from the model's own settings,
                then from the defaults (temperature 0.8, top_k 50, top_p 0.9, repeat_penalty 1.1 over 64).

        Raises:
            UsageError: an option is unknown or out of range.
            ContextOverflowError: the prompt does not fit the context window.
            TemplateError: the model has no chat template, or it refused the messages.
            OverloadedError: too many requests wait already.
        """
        check_count("n", n, 1, MAX_ANSWERS)
        window = check_context(n_ctx, self.n_ctx, self.n_ctx)
        if max_tokens is None:
            max_tokens = self._own.max_tokens
        limit = check_max_tokens(max_tokens, window)
        check_count("min_tokens", min_tokens, 0, limit)
        check_count("logprobs", logprobs or 0, 0, MAX_LOGPROBS)
        check_count("prompt_logprobs", prompt_logprobs or 0, 0, MAX_LOGPROBS)
        params = sampling_params(sampling, self._model_settings, vocab_size=self.spec.vocab_size)
        render = partial(
            self._chat_ids,
            add_generation_prompt=add_generation_prompt,
            extra=template_kwargs or {},
            before=check_token_ids(context_ids, self.spec.vocab_size),
        )
        room = window - answer_room(max_tokens, window)
        opening = () if context_ids else self.recipe.messages
        fitted = self._fitted(prompt, system, opening, context_policy, room, parse_special, render)
        limit = min(limit, check_room(len(fitted.prompt_ids), window))
        request = Request(
            fitted.prompt_ids,
            params,
            max_tokens=limit,
            stop_ids=frozenset() if ignore_eos else self.tokenizer.stop_ids,
            stop=tuple(dict.fromkeys((*check_stop(stop), *self._own.stop))),
            min_tokens=min_tokens,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            priority=priority,
            salt=salt,
        )
        return self._submitted([with_seed(request, i) for i in range(n)], fitted)

    def _submitted(self, requests: Sequence[Request], fitted: FittedChat) -> list[Answer]:
        """Submit all requests, or none of them."""
        answers: list[Answer] = []
        try:
            for request in requests:
                generation = self.engine.submit(request)
                answers.append(
                    Answer(generation, self.tokenizer, fitted.dropped_messages, fitted.dropped_tokens)
                )
        except NanollamaError:
            for answer in answers:
                answer.abort()
            raise
        return answers

    def _fitted(
        self,
        prompt: str | Sequence[int] | Messages,
        system: str | None,
        opening: Sequence[Message],
        policy: ContextPolicy,
        room: int,
        parse_special: bool,
        render: Callable[[Sequence[Message]], list[int]],
    ) -> FittedChat:
        """The prompt as token ids that fit the window."""
        if isinstance(prompt, str):
            ids = self.tokenizer.encode(prompt, add_special=True, parse_special=parse_special)
        elif prompt and isinstance(prompt[0], int):
            ids = check_token_ids(prompt, self.spec.vocab_size)
        else:
            return fit_chat(
                conversation(cast(Messages, prompt), system, self.recipe.system, opening),
                render_ids=render,
                max_prompt_tokens=room,
                policy=check_policy(policy),
                pinned=len(opening),
            )
        if system is not None:
            raise UsageError("a system prompt needs a conversation; pass messages instead of a text")
        if not ids:
            raise UsageError("the prompt is empty; give the model at least one token to continue")
        return FittedChat(tuple(ids), 0, 0)

    def logits(self, token_ids: Sequence[int]) -> "NDArray[np.float32]":
        """The float32 logits ``[n, vocab]`` for the token after each of the n given ones.

        Raises:
            UsageError: no ids, an id outside the vocabulary, or more ids than the context window holds.
        """
        for token_id in token_ids:
            if not 0 <= token_id < self.spec.vocab_size:
                raise UsageError(
                    f"token id {token_id} is not in the vocabulary of {self.spec.vocab_size} tokens"
                )
        return self.engine.score(token_ids)

    def close(self) -> None:
        """End what runs, and release the weights and the cache; closing twice does no harm."""
        self.engine.close()
        self.loaded.backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _chat_ids(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        extra: Mapping[str, Any] = MappingProxyType({}),
        before: Sequence[int] = (),
    ) -> list[int]:
        if self._template is None:
            raise TemplateError(
                f"the model {self.name} has no chat template, so it can only continue a text; "
                "give it a prompt instead of messages, or use an instruct model"
            )
        prompt = self._template.render(
            messages,
            add_generation_prompt=add_generation_prompt,
            control_tokens=self.tokenizer.control_tokens,
            **extra,
        )
        ids = self.tokenizer.encode(prompt, add_special=True, parse_special=True)
        repeats_bos = bool(before) and ids[:1] == [self.tokenizer.bos_id]
        return [*before, *ids[repeats_bos:]]
