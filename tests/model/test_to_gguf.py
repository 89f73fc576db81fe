"""A toy of every architecture written as GGUF: read back it is the same model, to us and to llama.cpp."""

from pathlib import Path

import llama_cpp
import numpy as np
import pytest

from checkpoints import CASES, VOCAB, Saved, make, opened
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


def llama_cpp_logits(path: Path, ids: tuple[int, ...]) -> np.ndarray:
    """What llama.cpp says about a file that has no tokenizer, with a float32 cache and no fused attention."""
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx = settings.n_batch = 256
    settings.n_threads = settings.n_threads_batch = 1
    settings.type_k = settings.type_v = llama_cpp.GGML_TYPE_F32
    settings.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
    assert model, "llama.cpp does not load the file"
    context = llama_cpp.llama_init_from_model(model, settings)
    batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for i, token_id in enumerate(ids):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token_id, i, 1, 1
        batch.seq_id[i][0] = 0
    assert llama_cpp.llama_decode(context, batch) == 0
    logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits(context), (len(ids), VOCAB)).copy()
    llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    return logits


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
