"""What a loaded model takes from its recipe, and what a caller can say instead."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from nanollama import LLM, Message
from nanollama.creating import create_model
from nanollama.errors import UsageError
from nanollama.inputs import conversation
from nanollama.store.names import ModelName
from nanollama.store.recipe import Recipe
from nanollama.store.store import Located, Store
from nanollama.text.chat import FittedChat, fit_chat

TEMPLATE = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
EXAMPLE = (Message("user", "one"), Message("assistant", "two"))
RECIPE = Recipe(
    template=TEMPLATE,
    system="own",
    messages=EXAMPLE,
    parameters={
        "temperature": 0.0,
        "repeat_penalty": 1.0,
        "stop": ("Lily", "girl"),
        "num_predict": 40,
        "num_ctx": 9999,
        "num_thread": 1,
        "num_batch": 8,
    },
)


@pytest.fixture(scope="module")
def story(stories_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LLM, list[str]]]:
    data = tmp_path_factory.mktemp("data")
    store = Store(data / "nanollama" / "models")
    create_model(store, ModelName.parse("story"), Located(stories_path, Recipe()), RECIPE, parent="stories")
    told: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(data))
        with LLM("story", device="cpu", notice=told.append) as llm:
            yield llm, told


def test_parameters_stand_between_the_callers_and_the_defaults(story: tuple[LLM, list[str]]) -> None:
    llm, _ = story
    greedy = [llm.generate("Once upon a time", stop=["zzz"], max_tokens=12).text for _ in range(2)]
    assert greedy[0] == greedy[1]
    wild = {
        llm.generate("Once upon a time", temperature=50.0, top_p=1.0, max_tokens=12).text for _ in range(3)
    }
    assert len(wild) > 1


def test_stop_texts_are_added_to_the_callers(story: tuple[LLM, list[str]]) -> None:
    llm, _ = story
    text = llm.generate("Once upon a time", max_tokens=60).text
    assert not any(word in text for word in ("Lily", "girl"))
    (answer,) = llm.start("Once", stop=["a", "Lily"], max_tokens=1)
    assert answer is not None
    assert "time" not in llm.generate("Once upon a", stop="time", max_tokens=20).text


def test_the_limit_of_tokens_is_the_recipes_until_a_caller_has_one(story: tuple[LLM, list[str]]) -> None:
    llm, _ = story
    assert len(llm.generate("She said", ignore_eos=True).token_ids) <= 40
    assert len(llm.generate("She said", ignore_eos=True, max_tokens=3).token_ids) == 3


def test_a_context_larger_than_the_models_is_told(story: tuple[LLM, list[str]]) -> None:
    llm, told = story
    assert llm.n_ctx == llm.spec.max_context
    assert told[0] == f"num_ctx is 9999, and the model's context window has {llm.n_ctx} tokens"


@pytest.mark.parametrize(
    ("messages", "system", "prompt"),
    [
        ("u", None, "[system] own\n[user] one\n[assistant] two\n[user] q\n"),
        ("u", "mine", "[system] mine\n[user] one\n[assistant] two\n[user] q\n"),
        ("u", "", "[system] \n[user] one\n[assistant] two\n[user] q\n"),
        ("su", None, "[system] q\n[user] one\n[assistant] two\n[user] q\n"),
    ],
)
def test_template_system_and_messages_begin_every_conversation(story, messages, system, prompt: str) -> None:
    llm, _ = story
    turns = [Message({"u": "user", "s": "system"}[letter], "q") for letter in messages]
    answer, expected = llm.chat(turns, system=system, max_tokens=8), llm.generate(prompt, max_tokens=8)
    assert (answer.prompt_tokens, answer.text) == (expected.prompt_tokens, expected.text)


U, A, S = (Message(role, "x") for role in ("user", "assistant", "system"))


@pytest.mark.parametrize(
    ("messages", "system", "own", "opening", "turns"),
    [
        ([U], None, None, [], "u"),
        ([U], None, "own", [], "su"),
        ([U], "given", "own", [], "su"),
        ([S, U], None, "own", [], "su"),
        ([S, S, U], None, "own", [U, A], "ssuau"),
        ([U, A, U], None, "own", [U, A], "suauau"),
        ([U], "", "own", [A], "sau"),
    ],
)
def test_a_conversation_is_put_together(messages, system, own, opening, turns: str) -> None:
    made = conversation(messages, system, own, opening)
    assert "".join(turn.role[0] for turn in made) == turns
    if system is not None:
        assert made[0].content == system


def test_pinned_messages_are_not_dropped_with_the_oldest() -> None:
    turns = [
        Message(role, str(i))
        for i, role in enumerate(["system", "user", "assistant", *["user", "assistant"] * 4])
    ]
    turns.append(Message("user", "last"))
    fitted = fit_chat(
        turns,
        render_ids=lambda kept: [turns.index(turn) for turn in kept],
        max_prompt_tokens=6,
        policy="drop_oldest",
        pinned=2,
    )
    assert fitted == FittedChat((0, 1, 2, 9, 10, 11), 6, 6)


@pytest.mark.parametrize("options", [{"threads": 0}, {"device": "tpu"}, {"quantize": "q9"}])
def test_a_wrong_way_to_load_is_refused_before_the_model_is_looked_for(options: dict) -> None:
    with pytest.raises(UsageError):
        LLM("no-such-model", **options)
