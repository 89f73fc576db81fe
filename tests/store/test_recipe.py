"""Recipes and their JSON."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanollama.errors import FormatError
from nanollama.store.recipe import Recipe, over, recipe_from_json, recipe_to_json
from nanollama.types import Message

texts = st.text(max_size=20)
values = st.integers() | st.floats(allow_nan=False) | st.booleans() | texts | st.lists(texts).map(tuple)
recipes = st.builds(
    Recipe,
    template=st.none() | texts,
    system=st.none() | texts,
    parameters=st.dictionaries(texts, values, max_size=4),
    messages=st.lists(st.builds(Message, texts, texts), max_size=3).map(tuple),
    licences=st.lists(texts, max_size=2).map(tuple),
    adapters=st.lists(texts, max_size=2).map(tuple),
    requires=st.none() | texts,
)


@given(recipes)
def test_a_recipe_comes_back_from_its_json(recipe: Recipe) -> None:
    assert recipe_from_json(json.loads(json.dumps(recipe_to_json(recipe)))) == recipe


def test_an_empty_recipe_is_an_empty_object() -> None:
    assert recipe_to_json(Recipe()) == {}
    assert recipe_from_json({}) == Recipe()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "a recipe is []; expected an object"),
        ({"tempalte": "x"}, "a recipe has a field 'tempalte'"),
        ({"template": 3}, "a recipe's template is 3; expected a text"),
        ({"licences": "MIT"}, "licences is 'MIT'; expected a list"),
        ({"licences": [1]}, "licences is [1]; expected a list of texts"),
        ({"parameters": []}, "its parameters is []"),
        ({"parameters": {"stop": [1]}}, "stop is [1]; expected a list of texts"),
        ({"parameters": {"seed": None}}, "parameter 'seed' is None"),
        ({"messages": {}}, "messages is {}; expected a list"),
        ({"messages": [{"role": "user"}]}, "expected role and content"),
        ({"messages": [{"role": "user", "content": "x", "more": 1}]}, "expected role and content"),
        ({"messages": ["x"]}, "a message of a recipe is 'x'"),
    ],
)
def test_what_is_no_recipe_is_refused(value: object, message: str) -> None:
    with pytest.raises(FormatError) as caught:
        recipe_from_json(value)
    assert message in str(caught.value)


def test_a_recipe_on_top_of_another_takes_from_it_what_it_leaves_open() -> None:
    base = Recipe("t", "s", {"seed": 1, "top_k": 2}, (Message("user", "a"),), ("MIT",), ("x.gguf",), "0.1.0")
    assert over(Recipe(), base) == base
    assert over(base, Recipe()) == base
    mine = Recipe(system="", parameters={"seed": 3}, messages=(Message("user", "b"),), licences=("BSD",))
    assert over(mine, base) == replace(
        base,
        system="",
        parameters={"seed": 3, "top_k": 2},
        messages=(Message("user", "b"),),
        licences=("MIT", "BSD"),
    )
