"""The reference page says what the code does."""

import ast
from pathlib import Path

import pytest

from nanollama.server.fields import ChatRequest, CompletionRequest
from nanollama.server.reference import reference
from nanollama.server.unsupported import IGNORED

PAGE = Path(__file__).parents[2] / "docs/reference/openai.md"
SERVER = Path(__file__).parents[2] / "src/nanollama/server"


def test_the_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == reference(), "run scripts/generate_reference.py"


@pytest.mark.parametrize("request_type", [ChatRequest, CompletionRequest])
def test_every_field_stands_on_it(request_type):
    page = reference()
    for name in [*request_type.model_fields, *request_type.refused, *IGNORED]:
        assert f"| `{name}`" in page


def codes_of(tree):
    """The codes of all problems that a module makes."""
    position = {"Problem": 2, "invalid": 2, "unavailable": 1}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in position:
            named = [keyword.value for keyword in node.keywords if keyword.arg == "code"]
            for value in named or node.args[position[node.func.id] :][:1]:
                if isinstance(value, ast.Constant) and value.value is not None:
                    yield value.value


def test_every_code_of_an_error_stands_on_it():
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in SERVER.glob("*.py")]
    codes = {code for tree in trees for code in codes_of(tree)}
    assert len(codes) > 15
    assert {code for code in codes if f"`{code}`" not in reference()} == set()
