"""What callers pass in, checked and completed at the edge: values in, values or a sentence out."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

from nanollama.errors import ContextOverflowError, UnsupportedError, UsageError
from nanollama.store.recipe import Recipe
from nanollama.types import ContextPolicy, Message, Request

Messages = Sequence[Message | Mapping[str, str]]

MAX_ANSWERS = 16
MAX_LOGPROBS = 20
MAX_STOPS = 16
MAX_STOP_CHARS = 256
_MESSAGE_FIELDS = {"role", "content", "name"}


def check_context(n_ctx: int | None, max_context: int, default: int) -> int:
    """The size of the context window: what was asked for, or the model's own up to ``default``."""
    if n_ctx is None:
        return min(max_context, default)
    if isinstance(n_ctx, bool) or not isinstance(n_ctx, int) or not 8 <= n_ctx <= max_context:
        raise UsageError(
            f"the context window asked for is {n_ctx} tokens; this model takes 8 to {max_context}"
        )
    return n_ctx


def check_count(name: str, value: object, low: int, high: int) -> None:
    """Refuse what is no whole number from ``low`` to ``high``."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise UsageError(f"{name} is {value!r}; expected a whole number from {low} to {high}")


def check_max_tokens(max_tokens: int | None, n_ctx: int) -> int:
    """The most tokens to generate; without a limit, as many as the window holds."""
    if max_tokens is None:
        return n_ctx
    if isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < 1:
        raise UsageError(f"max_tokens is {max_tokens!r}; expected a whole number of at least 1")
    return min(max_tokens, n_ctx)


def check_room(prompt_tokens: int, window: int) -> int:
    """How many tokens a window has left after a prompt; refuses a prompt that leaves none."""
    if prompt_tokens >= window:
        raise ContextOverflowError(
            f"the prompt has {prompt_tokens} tokens and the context window holds {window}, of which the "
            "answer needs at least one: shorten it or use a larger context window"
        )
    return window - prompt_tokens


def check_stop(stop: Sequence[str]) -> tuple[str, ...]:
    """Stop strings as a tuple; a single text counts as one of them."""
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    if len(stops) > MAX_STOPS or not all(isinstance(s, str) and 0 < len(s) <= MAX_STOP_CHARS for s in stops):
        raise UsageError(f"stop takes up to {MAX_STOPS} texts of 1 to {MAX_STOP_CHARS} characters each")
    return stops


def check_policy(policy: ContextPolicy) -> ContextPolicy:
    """A known context policy."""
    if policy in get_args(ContextPolicy):
        return policy
    raise UsageError(f"context_policy is {policy!r}; expected {' or '.join(get_args(ContextPolicy))}")


def check_recipe(recipe: Recipe) -> Recipe:
    """A recipe of which everything can be honoured."""
    if recipe.adapters:
        raise UnsupportedError(
            f"the model has an adapter ({recipe.adapters[0]}), and adapters can't be applied: create it "
            "without ADAPTER, or merge the adapter into the weights"
        )
    return recipe


def check_token_ids(token_ids: Sequence[Any], vocab_size: int) -> list[int]:
    """Token ids that are all in the vocabulary."""
    for token_id in token_ids:
        if isinstance(token_id, bool) or not isinstance(token_id, int) or not 0 <= token_id < vocab_size:
            raise UsageError(f"token id {token_id!r} is not in the vocabulary of {vocab_size} tokens")
    return list(token_ids)


def conversation(
    messages: Messages, system: str | None, own_system: str | None = None, opening: Sequence[Message] = ()
) -> list[Message]:
    """Messages as Message objects, the system prompt first.

    ``own_system`` is the model's own system prompt, for conversations that have none; ``opening`` are the
    messages with which all its conversations begin, after the system messages.

    Raises:
        UsageError: there are none, or one has no role or no text.
    """
    turns = [Message("system", system)] if system is not None else []
    turns += [m if isinstance(m, Message) else _message(m, i) for i, m in enumerate(messages)]
    if not turns or turns[-1].role == "system":
        raise UsageError("the conversation has no message to answer; add one with role user")
    if own_system is not None and turns[0].role != "system":
        turns.insert(0, Message("system", own_system))
    first = next(i for i, turn in enumerate(turns) if turn.role != "system")
    return [*turns[:first], *opening, *turns[first:]]


def _message(message: Mapping[str, str], index: int) -> Message:
    if not isinstance(message, Mapping) or not {"role", "content"} <= set(message) <= _MESSAGE_FIELDS:
        raise UsageError(
            f"message {index} is {message!r:.80}; expected the fields role and content, and perhaps name"
        )
    if not all(isinstance(value, str) for value in message.values()):
        raise UsageError(f"message {index} has a role, content or name that is not a text")
    return Message(**message)


def answer_room(max_tokens: int | None, window: int) -> int:
    """Tokens that a conversation leaves free for its answer: an eighth, or what was asked for."""
    return max(1, min(max_tokens or window // 8, window // 2))


def with_seed(request: Request, index: int) -> Request:
    """The request of answer ``index``: with a seed of its own, where there is one."""
    if index == 0 or request.sampling.seed is None:
        return request
    return replace(request, sampling=replace(request.sampling, seed=request.sampling.seed + index))
