"""The nouns that travel between stages: frozen, plain Python, no torch and no numpy.

Each is built in one place and only read afterwards. ``docs/tour.md`` shows them in the order in which a
request meets them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length"]
"""``stop``: the model ended its turn or a stop string appeared; ``length``: a token limit was reached."""

ContextPolicy = Literal["drop_oldest", "error"]
"""What happens to a conversation that is too long: drop the oldest turns and say so, or refuse."""

DEFAULT_MODEL = "smollm2"
DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = ("float32", "float16", "bfloat16")
BACKENDS = ("auto", "native", "torch")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation, as the chat template sees it. ``name`` says which of several speakers."""

    role: str
    content: str
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Prompt:
    """Text on its way to the tokenizer, with the parts that came from outside marked.

    ``literal`` holds half-open character spans ``(start, end)`` of ``text``, sorted and disjoint, in which no
    control token may be recognised: a ``<|im_end|>`` typed by a user stays ordinary text. ``adds_bos`` says
    that the text already begins with the beginning-of-sequence token, so that none is put before it.
    """

    text: str
    literal: tuple[tuple[int, int], ...] = ()
    adds_bos: bool = False


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen from the logits. ``None`` means that the step is off.

    The steps run in the order of the fields, which is llama.cpp's: bias, penalties, top-k, top-p, min-p,
    temperature. ``repeat_last_n`` is the number of latest tokens (prompt included) that the three penalties
    look at, ``None``
    for all of them. ``temperature`` 0 takes the most likely token. ``seed`` ``None`` draws a fresh seed.
    """

    logit_bias: Mapping[int, float] = field(default_factory=dict)
    repeat_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repeat_last_n: int | None = 64
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    temperature: float = 0.0
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """What the engine runs: token ids in, a way to sample, and when to stop.

    ``stop_ids`` end the answer, but not within its first ``min_tokens`` tokens. ``logprobs`` asks for that
    many alternatives with every token (0: the token's own alone), ``prompt_logprobs`` for the same of the
    prompt's tokens. Requests with the same ``salt`` may share what is cached of equal prompts. A smaller
    ``priority`` runs first.
    """

    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    max_tokens: int
    stop_ids: frozenset[int]
    stop: tuple[str, ...] = ()
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    priority: int = 0
    salt: str = ""


@dataclass(frozen=True, slots=True)
class Logprob:
    """The natural logarithm of a token's probability, and the likeliest tokens in its place, best first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One sampled token. With ``finish_reason`` set it is the last event of its request.

    A token that ended the turn is reported but is not part of the text. ``cached_tokens`` and
    ``prompt_logprobs`` (one for each prompt token but the first) come with the first event only.
    """

    token_id: int
    finish_reason: FinishReason | None = None
    cached_tokens: int = 0
    logprob: Logprob | None = None
    prompt_logprobs: tuple[Logprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds and token counts of one request.

    ``queue_s`` passes before its first step, ``prefill_s`` from there to the first sampled token.
    """

    prefill_tokens: int
    prefill_s: float
    decode_tokens: int
    decode_s: float
    cached_tokens: int = 0
    queue_s: float = 0.0

    @property
    def prefill_tok_s(self) -> float:
        return self.prefill_tokens / self.prefill_s if self.prefill_s > 0 else 0.0

    @property
    def decode_tok_s(self) -> float:
        return self.decode_tokens / self.decode_s if self.decode_s > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Completion:
    """The whole answer to one request: the fold of its event stream.

    ``dropped_messages`` and ``dropped_tokens`` count what the context policy left out of the prompt.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    timings: Timings
    dropped_messages: int = 0
    dropped_tokens: int = 0


@dataclass(frozen=True, slots=True)
class TextEvent:
    """A piece of text as it becomes final. The last one carries the ``completion``.

    ``logprobs`` belong to the tokens sampled since the event before, where the request asked for them.
    """

    text: str
    completion: Completion | None = None
    logprobs: tuple[Logprob, ...] = ()
    prompt_logprobs: tuple[Logprob, ...] = ()
