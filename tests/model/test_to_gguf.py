"""A toy of every architecture written as GGUF: read back it is the same model, to us and to llama.cpp."""

from pathlib import Path

import numpy as np
import pytest

from checkpoints import CASES, VOCAB, Saved, make, opened
from llama_oracle import llama_cpp_logits
from nanollama.backends.ops import ModelInput, SequenceInput
from nanollama.backends.torch_backend import TorchBackend
from nanollama.errors import UnsupportedError
from nanollama.formats.gguf_write import write_gguf
from nanollama.model.checkpoint import open_gguf
from nanollama.model.families.config import Config
from nanollama.model.registry import family_of_config
from nanollama.model.to_gguf import gguf_of_folder

BEYOND_WORDS = {
    "qwen2 with windows": "windows",
    "qwen3_moe, not normalized": "mlp",
    "gemma2 of another scale": "attention",
    "llama, dynamic rope": "max_context",
}
"""Cases that GGUF has no key for, and what it is about."""
OTHERWISE_IN_LLAMA_CPP = {
    "llama, weighed yarn": "it does not read the factor of YaRN's temperature",
    "mistral": "it ignores the window of this architecture",
    "phi3 with a window": "it ignores the window of this architecture",
    "gpt_oss": "it rounds the ends of YaRN's ramp, which this architecture does not",
}
IDS = tuple(int(i) for i in np.random.default_rng(1).integers(0, VOCAB, 40))


@pytest.fixture(scope="module", params=[case for case in CASES if case not in BEYOND_WORDS])
def case(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def saved(case: str, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return make(case, tmp_path_factory.mktemp("toy"))


def written(saved: Saved) -> Path:
    family = family_of_config(saved.config)
    spec, tensors = opened(saved.config, saved.arrays)
    config = Config(saved.config, saved.arrays.__contains__)
    metadata, sources = gguf_of_folder(family, spec, config, tensors)
    path = saved.folder / "toy.gguf"
    write_gguf(path, metadata | {"tokenizer.ggml.model": "none"}, sources)
    return path


@pytest.fixture(scope="module")
def path(saved: Saved) -> Path:
    return written(saved)


def test_the_gguf_file_is_the_same_model(saved: Saved, path: Path) -> None:
    checkpoint = open_gguf(path)
    spec, tensors = checkpoint.spec, checkpoint.tensors
    backend = TorchBackend(spec, tensors, device="cpu", dtype="float32", cache_tokens=64)
    checkpoint.close()
    logits = backend.step(ModelInput(IDS, (SequenceInput(len(IDS), 0, (0, 1)),), tuple(range(len(IDS)))))
    assert np.abs(logits - saved.logits(IDS)).max() < 1e-4


def test_llama_cpp_agrees(case: str, saved: Saved, path: Path) -> None:
    if case in OTHERWISE_IN_LLAMA_CPP:
        pytest.skip(OTHERWISE_IN_LLAMA_CPP[case])
    # Beyond the trained window of "phi3, longrope": llama.cpp takes the factors of its own window's size.
    ids = IDS * 3 if case == "phi3, longrope" else IDS
    # Its GELU comes from a table of half-precision numbers.
    close = 5e-3 if "gemma" in case else 1e-4
    assert np.abs(llama_cpp_logits(path, ids) - saved.logits(ids)).max() < close


@pytest.mark.parametrize(("case", "what"), BEYOND_WORDS.items())
def test_what_gguf_has_no_key_for_is_refused(case: str, what: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=f"about {what}"):
        written(make(case, tmp_path))
