"""Writes the pages of docs/reference from the tables in the code.

python scripts/generate_reference.py
"""

from pathlib import Path

from nanollama.server.ollama.reference import reference as ollama_reference
from nanollama.server.reference import reference
from nanollama.store.modelfile_page import modelfile_page

FOLDER = Path(__file__).resolve().parent.parent / "docs/reference"
PAGES = {"openai.md": reference, "ollama.md": ollama_reference, "modelfile.md": modelfile_page}

if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page(), encoding="utf-8")
