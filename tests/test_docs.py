"""The pages that people read: links lead somewhere, and an example prints what it is said to print."""

import contextlib
import io
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\]\(([^)\s#]+)(?:#[^)]*)?\)")
EXAMPLE = re.compile(r"```python\n(.*?)```\n(?:\n```\n(.*?)```)?", re.DOTALL)
MODELS = ("smollm2", "stories260K")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files_that_exist(page: Path) -> None:
    links = [link for link in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", [page for page in PAGES if "reference" in page.parts], ids=name_of)
def test_a_page_of_reference_is_linked_from_another_page(page: Path) -> None:
    others = [other for other in PAGES if other != page]
    assert any(
        (other.parent / link).resolve() == page
        for other in others
        for link in LINK.findall(other.read_text(encoding="utf-8"))
        if "://" not in link
    )


def examples() -> list[object]:
    """The Python blocks of the lessons, each with the block that follows it: what it prints."""
    found: list[object] = []
    for page in sorted((ROOT / "docs/lessons").glob("*.md")):
        for number, (code, printed) in enumerate(EXAMPLE.findall(page.read_text(encoding="utf-8")), 1):
            needs = [pytest.mark.model] if any(model in code for model in MODELS) else []
            found.append(pytest.param(code, printed, id=f"{page.stem}-{number}", marks=needs))
    return found


@pytest.mark.parametrize(("code", "printed"), examples())
def test_an_example_prints_what_stands_below_it(
    code: str, printed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = compile(code, "<example>", "exec")
    if any(model in code for model in MODELS):
        return  # its figures are the machine's, or of a model that may not be here
    monkeypatch.chdir(tmp_path)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compiled, {"__name__": "example"})
    assert out.getvalue() == printed
