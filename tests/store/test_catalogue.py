import hashlib

import pytest

from nanollama.store.catalogue import ALIASES, CATALOGUE, PINNED, WheelFile, find_entry
from nanollama.store.hub import REPO
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


@pytest.mark.parametrize(
    ("text", "name", "quant"),
    [
        ("llama3.2:1b-instruct", "llama3.2:1b", "Q4_K_M"),
        ("llama3.2:1b-instruct-q8_0", "llama3.2:1b-instruct-q8_0", "q8_0"),
        ("gemma3:4b-it-q4_K_M", "gemma3:4b-it-q4_k_m", "q4_k_m"),
        ("qwen3:8b-q6_K", "qwen3:8b-q6_k", "q6_k"),
    ],
)
def test_a_long_tag_means_another_file_of_the_same_repository(text, name, quant):
    entry = find_entry(ModelName.parse(text))
    assert (str(entry.name), entry.repo.quant) == (name, quant)
    assert entry.repo.repo == find_entry(ModelName.parse(text.partition("-")[0])).repo.repo


@pytest.mark.parametrize(
    "text",
    ["smollm2:135m-q8_0", "llama3.2:9b-q8_0", "llama3.2:1b-base", "llama3.2:1b-q8", "me/qwen3:8b-q8_0"],
)
def test_a_long_tag_of_what_is_not_there_means_nothing(text):
    assert find_entry(ModelName.parse(text)) is None


@pytest.mark.parametrize("entry", PINNED, ids=lambda entry: str(entry.name))
def test_a_pinned_entry_is_a_gguf_file_with_size_digest_and_a_source(entry):
    assert entry.file.endswith(".gguf")
    assert "/" not in entry.file
    assert entry.size > 1_000_000
    assert entry.digest
    assert entry.sources
    assert entry.repo is None
    for source in entry.sources:
        if isinstance(source, WheelFile):
            assert all(part.wheel_bytes > 1_000_000 for part in source.parts)


@pytest.mark.parametrize("entry", CATALOGUE[len(PINNED) :], ids=lambda entry: str(entry.name))
def test_any_other_entry_names_a_repository_and_pins_nothing(entry):
    assert REPO.fullmatch(entry.repo.repo)
    assert entry.repo.quant
    assert (entry.file, entry.size, entry.digest, entry.sources) == (None, None, None, ())


def test_every_entry_has_a_licence():
    assert all(entry.licence for entry in CATALOGUE)


@pytest.mark.parametrize(
    "wanted",
    [
        "tinyllama",
        "smollm2:360m",
        "smollm2:1.7b",
        "qwen2.5:0.5b",
        "qwen2.5",
        "qwen3:0.6b",
        "qwen3",
        "llama3.1",
        "llama3.2:1b",
        "llama3.2",
        "mistral",
        "gemma3:1b",
        "gemma3",
        "phi3",
        "phi3:mini",
        "phi4-mini",
        "deepseek-r1:1.5b",
        "deepseek-r1",
        "nomic-embed-text",
        "all-minilm",
    ],
)
def test_the_models_that_people_ask_for_have_a_short_name(wanted):
    assert find_entry(ModelName.parse(wanted)) is not None


@pytest.mark.model
@pytest.mark.parametrize(("name", "fixture"), [("smollm2", "smollm2_path"), ("gemma3:270m", "gemma3_path")])
def test_the_real_file_has_the_pinned_size_and_digest(name, fixture, request):
    path = request.getfixturevalue(fixture)
    entry = find_entry(ModelName.parse(name))
    with path.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == entry.digest.hex
    assert path.stat().st_size == entry.size
