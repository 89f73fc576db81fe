from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanollama.errors import ContextOverflowError
from nanollama.text.chat import FittedChat, fit_chat
from nanollama.types import Message


def render_ids(messages: Sequence[Message]) -> list[int]:
    """A start, one token of scaffolding and one a character for each message, and an end."""
    ids = [1]
    for message in messages:
        ids += [2, *map(ord, message.content)]
    return [*ids, 3]


def chat(*turns: str) -> list[Message]:
    """Messages from strings such as "s:text", where the letter is the role."""
    roles = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    return [Message(roles[turn[0]], turn[2:]) for turn in turns]


TALK = chat("s:ss", "u:one", "a:two", "u:three", "a:four", "u:five")


def test_a_conversation_that_fits_exactly_is_left_alone() -> None:
    whole = render_ids(TALK)
    for policy in ("drop_oldest", "error"):
        fitted = fit_chat(TALK, render_ids=render_ids, max_prompt_tokens=len(whole), policy=policy)
        assert fitted == FittedChat(tuple(whole), 0, 0)


def test_one_token_too_many_drops_the_oldest_turn_and_counts_it() -> None:
    whole = render_ids(TALK)
    fitted = fit_chat(TALK, render_ids=render_ids, max_prompt_tokens=len(whole) - 1, policy="drop_oldest")
    assert fitted.prompt_ids == tuple(render_ids([TALK[0], *TALK[3:]]))
    assert (fitted.dropped_messages, fitted.dropped_tokens) == (2, len("one") + len("two") + 2)


@pytest.mark.parametrize(
    ("turns", "kept"),
    [
        (["u:aaaa", "a:b", "u:c"], ["u:c"]),
        (["s:s", "s:t", "u:aaaa", "a:b", "u:c"], ["s:s", "s:t", "u:c"]),
        (["a:hello", "u:aa", "a:b", "u:c"], ["u:c"]),
        (["u:aaaa", "a:bbbb", "t:cc", "a:dd", "u:e"], ["u:e"]),
        (["u:aaaaaa", "s:late", "u:c"], ["u:c"]),
        (["u:aaaaaa", "a:b", "u:c", "a:d"], ["u:c", "a:d"]),
        (["u:aaaaaa", "u:b", "u:c"], ["u:b", "u:c"]),
    ],
)
def test_leading_system_messages_and_the_last_user_message_stay(turns: list[str], kept: list[str]) -> None:
    wanted = render_ids(chat(*kept))
    fitted = fit_chat(
        chat(*turns), render_ids=render_ids, max_prompt_tokens=len(wanted), policy="drop_oldest"
    )
    assert fitted.prompt_ids == tuple(wanted)
    assert fitted.dropped_messages == len(turns) - len(kept)


def test_the_policy_error_refuses_with_the_numbers() -> None:
    needed = len(render_ids(TALK))
    with pytest.raises(
        ContextOverflowError, match=rf"takes {needed} tokens and 20 are available.*drop_oldest"
    ):
        fit_chat(TALK, render_ids=render_ids, max_prompt_tokens=20, policy="error")


@pytest.mark.parametrize(
    "messages",
    [TALK, TALK[-1:], chat("s:only a long system prompt"), chat("a:no user has spoken so far")],
    ids=["talk", "one message", "system only", "assistant only"],
)
def test_what_can_not_be_dropped_and_does_not_fit_is_refused_with_the_numbers(
    messages: list[Message],
) -> None:
    with pytest.raises(ContextOverflowError, match=r"alone take \d+ tokens and 3 are available"):
        fit_chat(messages, render_ids=render_ids, max_prompt_tokens=3, policy="drop_oldest")


def slow_fit(messages: list[Message], limit: int) -> list[Message] | None:
    """The twin that tries every start in turn."""
    first = next((i for i, message in enumerate(messages) if message.role != "system"), len(messages))
    starts = [0, *(i for i, message in enumerate(messages) if i > first and message.role == "user")]
    for start in starts:
        kept = [*messages[:first], *messages[max(start, first) :]]
        if len(render_ids(kept)) <= limit:
            return kept
    return None


TURNS = st.tuples(st.sampled_from("suat"), st.text("x", max_size=9)).map(":".join)


@settings(max_examples=400, deadline=None)
@given(st.lists(TURNS, max_size=14), st.integers(0, 80))
def test_the_fewest_turns_are_dropped(turns: list[str], limit: int) -> None:
    messages = chat(*turns)
    expected = slow_fit(messages, limit)
    if expected is None:
        with pytest.raises(ContextOverflowError):
            fit_chat(messages, render_ids=render_ids, max_prompt_tokens=limit, policy="drop_oldest")
        return
    fitted = fit_chat(messages, render_ids=render_ids, max_prompt_tokens=limit, policy="drop_oldest")
    assert fitted.prompt_ids == tuple(render_ids(expected))
    assert len(fitted.prompt_ids) <= limit
    assert fitted.dropped_messages == len(messages) - len(expected)
    assert fitted.dropped_tokens == len(render_ids(messages)) - len(fitted.prompt_ids)


@settings(max_examples=100, deadline=None)
@given(st.lists(TURNS, min_size=1, max_size=14))
def test_a_smaller_window_never_keeps_more(turns: list[str]) -> None:
    messages = chat(*turns)
    dropped = []
    for limit in range(len(render_ids(messages)), 0, -1):
        try:
            fitted = fit_chat(messages, render_ids=render_ids, max_prompt_tokens=limit, policy="drop_oldest")
        except ContextOverflowError:
            break
        dropped.append(fitted.dropped_messages)
    assert dropped == sorted(dropped)


@settings(max_examples=200, deadline=None)
@given(st.lists(TURNS, min_size=1, max_size=10), st.integers(1, 60), st.randoms(use_true_random=False))
def test_a_template_whose_length_jumps_still_gets_a_prompt_that_fits(
    turns: list[str], limit: int, random: object
) -> None:
    lengths: dict[int, int] = {}

    def erratic(messages: Sequence[Message]) -> list[int]:
        length = lengths.setdefault(len(messages), random.randrange(80))  # type: ignore[attr-defined]
        return [0] * length

    try:
        fitted = fit_chat(chat(*turns), render_ids=erratic, max_prompt_tokens=limit, policy="drop_oldest")
    except ContextOverflowError:
        return
    assert len(fitted.prompt_ids) <= limit


def test_a_thousand_turns_take_a_dozen_renderings() -> None:
    calls = 0

    def counting(messages: Sequence[Message]) -> list[int]:
        nonlocal calls
        calls += 1
        return render_ids(messages)

    messages = chat(*["u:question", "a:answer"] * 1000, "u:last")
    fit_chat(messages, render_ids=counting, max_prompt_tokens=500, policy="drop_oldest")
    assert calls <= 14
