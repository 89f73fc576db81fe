"""Writes docs/reference/openai.md from the table of request fields.

python scripts/generate_reference.py
"""

from pathlib import Path

from nanollama.server.reference import reference

PAGE = Path(__file__).resolve().parent.parent / "docs/reference/openai.md"

if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(reference(), encoding="utf-8")
