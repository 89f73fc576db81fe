"""Fitting a conversation into the context window: in come messages, out come token ids that fit.

Nothing is cut silently and no message is cut in two: whole turns go, the oldest first, and are counted.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nanollama.errors import ContextOverflowError
from nanollama.types import ContextPolicy, Message


@dataclass(frozen=True, slots=True)
class FittedChat:
    """Token ids of a prompt that fits, and how many messages and tokens were left out of it."""

    prompt_ids: tuple[int, ...]
    dropped_messages: int
    dropped_tokens: int


def fit_chat(
    messages: Sequence[Message],
    *,
    render_ids: Callable[[Sequence[Message]], list[int]],
    max_prompt_tokens: int,
    policy: ContextPolicy,
    pinned: int = 0,
) -> FittedChat:
    """``messages`` as at most ``max_prompt_tokens`` token ids, made by ``render_ids``.

    With ``drop_oldest`` the leading system messages, the ``pinned`` messages after them, and everything from
    the last user message on are kept, and what remains starts with a user message, since many templates
    insist on alternating roles.

    Raises:
        ContextOverflowError: the rest is still too long; with the policy ``error``, the whole is.
    """
    whole = render_ids(messages)
    if len(whole) <= max_prompt_tokens:
        return FittedChat(tuple(whole), 0, 0)
    if policy == "error":
        raise ContextOverflowError(
            f"The conversation takes {len(whole):,} tokens and {max_prompt_tokens:,} are available for it; "
            "shorten it, use a larger context window, or let the oldest turns be dropped (context policy "
            "drop_oldest)."
        )

    first = (
        next((i for i, message in enumerate(messages) if message.role != "system"), len(messages)) + pinned
    )
    starts = [i for i, message in enumerate(messages) if i > first and message.role == "user"]

    def ids_from(start: int) -> list[int]:
        return render_ids([*messages[:first], *messages[start:]])

    shortest = ids_from(starts[-1]) if starts else whole
    if len(shortest) > max_prompt_tokens:
        raise ContextOverflowError(
            f"The last message and the system prompt alone take {len(shortest):,} tokens and "
            f"{max_prompt_tokens:,} are available for them; shorten them or use a larger context window."
        )

    # Dropping more turns makes the prompt shorter, so the fewest are found by bisection: some ten renderings
    # where trying one turn after the other could take thousands. A template that breaks this rule still gets
    # a prompt that fits.
    low, high, fitted = -1, len(starts) - 1, shortest
    while high - low > 1:
        middle = (low + high) // 2
        tried = ids_from(starts[middle])
        if len(tried) <= max_prompt_tokens:
            high, fitted = middle, tried
        else:
            low = middle
    return FittedChat(tuple(fitted), starts[high] - first, len(whole) - len(fitted))
