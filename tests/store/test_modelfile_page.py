"""The reference page says what the code does."""

from pathlib import Path

import pytest

from nanollama.store.modelfile import INSTRUCTIONS, UNSUPPORTED
from nanollama.store.modelfile_page import modelfile_page
from nanollama.store.parameters import DEPRECATED, PARAMETERS

PAGE = Path(__file__).parents[2] / "docs/reference/modelfile.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == modelfile_page(), "run scripts/generate_reference.py"


@pytest.mark.parametrize("name", [*INSTRUCTIONS, *UNSUPPORTED, *PARAMETERS, *sorted(DEPRECATED)])
def test_everything_stands_on_it(name: str) -> None:
    assert f"`{name}`" in modelfile_page()
