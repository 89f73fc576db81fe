"""Where tests find real files: the models in the user's store and the data beside the project.

Nothing is fetched here. ``scripts/test`` fetches the models once; a test whose file is missing skips with a
sentence.
"""

import os
from pathlib import Path

import pytest

os.environ.pop("NANOLLAMA_MODELS", None)  # the tests have stores of their own

PROJECT = Path(__file__).parent.parent
DATA = PROJECT.parent / "shared" / "data"
MODELS = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "nanollama" / "models"


def existing(path: Path, what: str) -> Path:
    """``path``, or a skip that says what is missing and how to get it."""
    if not path.exists():
        pytest.skip(f"{what} is not there: expected {path.name} (scripts/test fetches models)")
    return path


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    return existing(MODELS / "library/smollm2/135m/SmolLM2-135M-Instruct.Q4_1.gguf", "the model smollm2")


@pytest.fixture(scope="session")
def gemma3_path() -> Path:
    return existing(MODELS / "library/gemma3/270m/gemma-3-270m-q4_k_m.gguf", "the model gemma3:270m")


@pytest.fixture(scope="session")
def stories_path() -> Path:
    return existing(DATA / "stories260K.gguf", "the toy model stories260K")


@pytest.fixture(scope="session")
def vocab_dir() -> Path:
    return existing(DATA / "vocab", "the folder of golden vocabularies")


@pytest.fixture(scope="session")
def wikitext_path() -> Path:
    return existing(DATA / "wikitext2-valid.txt", "the WikiText-2 validation text")
