"""The reference page of Ollama's API says what the code does."""

from pathlib import Path

import pytest

from nanollama.server.environment import VARIABLES
from nanollama.server.ollama.creation import CreateRequest
from nanollama.server.ollama.fields import (
    ChatRequest,
    CopyRequest,
    DeleteRequest,
    GenerateRequest,
    PullRequest,
    ShowRequest,
)
from nanollama.server.ollama.options import IGNORED_OPTIONS, REFUSED_OPTIONS, SUPPORTED_OPTIONS
from nanollama.server.ollama.reference import reference
from nanollama.server.tables import fields_of

PAGE = Path(__file__).parents[2] / "docs/reference/ollama.md"


def test_the_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == reference(), "run scripts/generate_reference.py"


@pytest.mark.parametrize(
    "request_type",
    [ChatRequest, GenerateRequest, ShowRequest, PullRequest, CreateRequest, CopyRequest, DeleteRequest],
)
def test_every_field_stands_on_it(request_type):
    page = reference()
    for name in [*fields_of(request_type), *request_type.refused, *request_type.ignored]:
        assert f"| `{name}`" in page
    for name in getattr(request_type, "lacking", ()):
        assert f"| `{name}`" in page


def test_every_option_and_variable_stands_on_it():
    page = reference()
    for name in [*SUPPORTED_OPTIONS, *IGNORED_OPTIONS, *REFUSED_OPTIONS]:
        assert f"| `{name}` |" in page
    for variable in VARIABLES:
        assert f"| `{variable.name}` | `{variable.ollama}` |" in page
