import hashlib

import pytest

from nanollama.store.catalogue import ALIASES, CATALOGUE, WheelFile, find_entry
from nanollama.store.names import ModelName


@pytest.mark.parametrize(
    ("text", "file"),
    [
        ("smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
        ("smollm2:latest", "SmolLM2-135M-Instruct.Q4_1.gguf"),
        ("smollm2:135m", "SmolLM2-135M-Instruct.Q4_1.gguf"),
        ("library/SmolLM2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
        ("gemma3:270m", "gemma-3-270m-q4_k_m.gguf"),
    ],
)
def test_a_short_name_means_one_pinned_file(text, file):
    entry = find_entry(ModelName.parse(text))
    assert entry is not None
    assert entry.file == file


@pytest.mark.parametrize("text", ["smollm2:1b", "other/smollm2", "hub.example.org/library/smollm2", "smollm"])
def test_a_name_that_only_resembles_an_entry_means_nothing(text):
    assert find_entry(ModelName.parse(text)) is None


def test_names_are_unique_and_aliases_lead_to_entries():
    names = [str(entry.name) for entry in CATALOGUE]
    assert len(set(names)) == len(names)
    assert set(ALIASES.values()) <= set(names)
    assert not set(ALIASES) & set(names)


@pytest.mark.parametrize("entry", CATALOGUE, ids=lambda entry: str(entry.name))
def test_every_entry_is_a_gguf_file_with_a_licence_and_a_source(entry):
    assert entry.file.endswith(".gguf")
    assert "/" not in entry.file
    assert entry.licence
    assert entry.sources
    for source in entry.sources:
        if isinstance(source, WheelFile):
            assert all(part.wheel_bytes > 1_000_000 for part in source.parts)


@pytest.mark.model
@pytest.mark.parametrize(("name", "fixture"), [("smollm2", "smollm2_path"), ("gemma3:270m", "gemma3_path")])
def test_the_real_file_has_the_pinned_size_and_digest(name, fixture, request):
    path = request.getfixturevalue(fixture)
    entry = find_entry(ModelName.parse(name))
    with path.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == entry.digest.hex
    assert path.stat().st_size == entry.size
