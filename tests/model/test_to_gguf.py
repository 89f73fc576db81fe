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
from toys import packed

BEYOND_WORDS = {
    "qwen2 with windows": r"which layers have a window \(layer_types, use_sliding_window, sliding_window",
    "qwen3_moe, not normalized": r"how experts are weighed \(norm_topk_prob\)",
    "gemma2 of another scale": r"the scale of scores \(query_pre_attn_scalar\)",
    "llama, dynamic rope": r"a window that grows \(rope_parameters\) and rotations \(rope_parameters\)",
}
"""Cases that GGUF has no key for, and what it is about."""
ONE_KEY = [
    ("gemma2", "attn_logit_softcapping", None, r"the cap of scores \(attn_logit_softcapping\)"),
    ("gemma2", "final_logit_softcapping", None, r"the cap of logits \(final_logit_softcapping\)"),
    ("gemma3", "query_pre_attn_scalar", 14, r"the scale of scores \(query_pre_attn_scalar\)"),
    ("gemma3", "layer_types", ["full_attention"] * 7, r"which layers have a window \(layer_types"),
    ("smollm3", "no_rope_layers", [1, 0, 1, 1, 1], r"rotations \(rope_parameters, no_rope_layers"),
    ("smollm3", "attention_bias", True, r"biases of q, k and v \(attention_bias\)"),
    ("granite", "rms_norm_eps", 1e-3, None),
    ("llama", "rope_scaling", {"type": "dynamic", "factor": 2.0}, r"rotations \(rope_scaling\)"),
]
"""A case, one key of its config.json and another value, and what of it a GGUF file can't say, if anything."""
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


@pytest.mark.parametrize(
    ("case", "key", "value", "message"), ONE_KEY, ids=[f"{case}, {key}" for case, key, *_ in ONE_KEY]
)
def test_a_refusal_names_the_key(
    case: str, key: str, value: object, message: str | None, tmp_path: Path
) -> None:
    saved = make(case, tmp_path)
    values = saved.config | {key: value}
    if key == "rope_scaling":
        del values["rope_parameters"]
    config = Config(values, saved.arrays.__contains__)
    family = family_of_config(values)
    spec = family.from_config(config)
    stored = {name: packed(name, array) for name, array in saved.arrays.items()}
    tensors = family.folder_parameters(spec, stored)
    if message is None:
        gguf_of_folder(family, spec, config, tensors)
        return
    with pytest.raises(UnsupportedError, match=message):
        gguf_of_folder(family, spec, config, tensors)
