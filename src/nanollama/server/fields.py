"""Every field of OpenAI's requests in one table: JSON in, a checked request or a refusal by name out.

``docs/reference/openai.md`` and the OpenAPI page are made from this table; see `tables.py`.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema

from nanollama.server.body import shown
from nanollama.server.messages import MESSAGES_SCHEMA, read_messages
from nanollama.server.problems import invalid
from nanollama.server.tables import MAX_TOKENS, Body, Expects
from nanollama.server.unsupported import IGNORED, REFUSED_CHAT, REFUSED_COMPLETION, Refused
from nanollama.types import ContextPolicy

MAX_CHOICES = 16
MAX_PROMPTS = 64
MAX_LOGPROBS = 20
MAX_BIASES = 1024
SEED_BITS = 63

StopText = Annotated[str, Field(min_length=1, max_length=256)]
TokenId = Annotated[int, Field(ge=0, le=MAX_TOKENS)]
TokenIds = Annotated[list[TokenId], Field(min_length=1)]
WantsLogprobs = Annotated[bool | None, Field(description="send the logarithm of each token's probability")]
TopLogprobs = Annotated[
    int | None,
    Field(ge=0, le=MAX_LOGPROBS, description="send as many likely tokens as well; needs logprobs"),
]

SHADOWING = frozenset(
    {"add_generation_prompt", "bos_token", "chat_template", "documents", "eos_token", "messages", "tokenize"}
    | {"tools"}
)
"""Names that a chat template gets from the server; a request can't replace them."""


class StreamOptions(BaseModel):
    """``stream_options``."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class Generating(Body):
    """What chats and completions have in common. What is ``None`` comes from the model's own settings."""

    ignored: ClassVar[Mapping[str, str]] = IGNORED

    model: Annotated[
        str, Field(min_length=1, max_length=512, description="the name of a model, as /v1/models lists it")
    ]
    temperature: Annotated[
        float | None, Field(ge=0, le=2, description="randomness; 0 always takes the likeliest token")
    ] = None
    top_p: Annotated[
        float | None, Field(ge=0, le=1, description="keep the likeliest tokens that make up this share")
    ] = None
    top_k: Annotated[
        int | None, Field(ge=-1, le=MAX_TOKENS, description="keep that many tokens; 0 or -1 keeps all")
    ] = None
    min_p: Annotated[
        float | None,
        Field(ge=0, le=1, description="drop tokens less likely than this share of the best one's"),
    ] = None
    repetition_penalty: Annotated[
        float | None, Field(ge=0.01, le=100, description="make repeated tokens less likely; 1 is off")
    ] = None
    presence_penalty: Annotated[
        float | None, Field(ge=-2, le=2, description="subtracted once from the logits of tokens seen")
    ] = None
    frequency_penalty: Annotated[
        float | None, Field(ge=-2, le=2, description="subtracted for each time a token was seen")
    ] = None
    logit_bias: Annotated[
        dict[Annotated[str, Field(pattern=r"^[0-9]{1,10}$")], Annotated[float, Field(ge=-100, le=100)]]
        | None,
        Field(max_length=MAX_BIASES, description="added to the logits of tokens"),
        Expects(f"an object of up to {MAX_BIASES} token ids, each with a number from -100 to 100"),
    ] = None
    seed: Annotated[
        int | None,
        Field(ge=-(2**SEED_BITS), le=2**SEED_BITS - 1, description="same seed, same text"),
        Expects("a whole number of 64 bits"),
    ] = None
    n: Annotated[int | None, Field(ge=1, le=MAX_CHOICES, description="how many answers to one prompt")] = None
    stop: Annotated[
        StopText | Annotated[list[StopText], Field(max_length=16)] | None,
        Field(description="texts that end the answer and are not part of it"),
        Expects("a text of 1 to 256 characters, or a list of up to 16 of them"),
    ] = None
    min_tokens: Annotated[
        int | None, Field(ge=0, le=MAX_TOKENS, description="the answer does not end before that many tokens")
    ] = None
    ignore_eos: Annotated[
        bool | None, Field(description="go on after the model ends its turn, up to max_tokens")
    ] = None
    stream: Annotated[bool | None, Field(description="send the answer while it is made")] = None
    stream_options: Annotated[
        StreamOptions | None,
        Field(description="include_usage sends a last chunk with the usage"),
        Expects("an object with include_usage, and only together with stream"),
    ] = None
    context_policy: Annotated[
        ContextPolicy | None,
        Field(description="what to do with a conversation that doesn't fit (error)"),
        Expects(" or ".join(get_args(ContextPolicy))),
    ] = None

    @property
    def choices(self) -> int:
        """How many answers are asked for."""
        return self.n or 1

    @property
    def token_limit(self) -> int | None:
        """The most tokens of one answer; ``None`` up to the end of the context window."""
        return None

    @property
    def stops(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def includes_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def sampling(self) -> dict[str, Any]:
        """What was set of the keywords that ``LLM.start`` calls sampling."""
        bias = (
            None
            if self.logit_bias is None
            else {int(token): value for token, value in self.logit_bias.items()}
        )
        values = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": 0 if self.top_k == -1 else self.top_k,
            "min_p": self.min_p,
            "repeat_penalty": self.repetition_penalty,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "logit_bias": bias,
            "seed": self.seed,
        }
        return {name: value for name, value in values.items() if value is not None}

    def check_together(self) -> None:
        if self.stream_options is not None and not self.stream:
            raise invalid("stream_options is only allowed together with stream.", "stream_options")
        limit = self.token_limit
        if limit is not None and (self.min_tokens or 0) > limit:
            raise invalid(
                f"min_tokens is {self.min_tokens}; expected at most max_tokens, {limit}.", "min_tokens"
            )


class ChatRequest(Generating):
    """The body of ``POST /v1/chat/completions``."""

    refused: ClassVar[Mapping[str, Refused]] = REFUSED_CHAT

    messages: Annotated[
        list[dict[str, str]],
        PlainValidator(read_messages),
        WithJsonSchema(MESSAGES_SCHEMA),
        Field(
            description="the conversation: role (system, developer, user, assistant), content, perhaps a name"
        ),
        Expects("a list of messages"),
    ]
    max_tokens: Annotated[
        int | None, Field(ge=1, le=MAX_TOKENS, description="the older name of max_completion_tokens")
    ] = None
    max_completion_tokens: Annotated[
        int | None, Field(ge=1, le=MAX_TOKENS, description="most tokens of an answer")
    ] = None
    logprobs: WantsLogprobs = None
    top_logprobs: TopLogprobs = None
    add_generation_prompt: Annotated[
        bool | None, Field(description="end the prompt with the beginning of the answer (true)")
    ] = None
    chat_template_kwargs: Annotated[
        dict[str, Any] | None,
        Field(max_length=64, description="further values for the model's chat template"),
        Expects("an object of up to 64 values"),
    ] = None

    @property
    def token_limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def alternatives(self) -> int | None:
        """How many likely tokens go with each token; ``None`` if no logprobs are asked for."""
        return (self.top_logprobs or 0) if self.logprobs else None

    def check_together(self) -> None:
        super().check_together()
        if self.top_logprobs is not None and not self.logprobs:
            raise invalid("top_logprobs is only allowed together with logprobs.", "top_logprobs")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.token_limit:
            raise invalid("max_tokens and max_completion_tokens differ; give one of them.", "max_tokens")
        for name in sorted(self.chat_template_kwargs or ()):
            if name in SHADOWING or not name.isidentifier() or name.startswith("_"):
                raise invalid(
                    f"chat_template_kwargs can't set {shown(name)}; choose another name.",
                    "chat_template_kwargs",
                )


class CompletionRequest(Generating):
    """The body of ``POST /v1/completions``."""

    refused: ClassVar[Mapping[str, Refused]] = REFUSED_COMPLETION

    prompt: Annotated[
        str
        | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS)]
        | TokenIds
        | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_PROMPTS)],
        Field(description="what to continue"),
        Expects(f"a text, a list of token ids, or a list of 1 to {MAX_PROMPTS} of either"),
    ]
    max_tokens: Annotated[
        int | None, Field(ge=0, le=MAX_TOKENS, description="most tokens of an answer (16); 0 only with echo")
    ] = None
    logprobs: Annotated[
        int | None,
        Field(
            ge=0,
            le=MAX_LOGPROBS,
            description="send each token's log probability and those of as many likely ones",
        ),
    ] = None
    echo: Annotated[bool | None, Field(description="begin the answer with the prompt")] = None

    @property
    def token_limit(self) -> int:
        return 16 if self.max_tokens is None else self.max_tokens

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts one by one."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [[token for token in self.prompt if isinstance(token, int)]]
        return [prompt for prompt in self.prompt if not isinstance(prompt, int)]

    @property
    def choices(self) -> int:
        return len(self.prompts) * (self.n or 1)

    def check_together(self) -> None:
        super().check_together()
        if self.max_tokens == 0 and not self.echo:
            raise invalid("max_tokens is 0; expected at least 1, or echo as well.", "max_tokens")
        if self.context_policy == "drop_oldest":
            raise invalid(
                "context_policy drop_oldest needs messages; a prompt has no turns.", "context_policy"
            )
