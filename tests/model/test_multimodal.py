"""Models for text and images: the text part computes as in transformers, what is about images is left out by
name, and everything else in the folder still has to fit.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from checkpoints import BASE, VOCAB, WINDOW
from folders import edit
from llama_oracle import llama_cpp_logits
from nanollama.backends.native.backend import NativeBackend
from nanollama.backends.native.library import Library
from nanollama.backends.native.locate import find_library
from nanollama.backends.ops import ModelInput, SequenceInput
from nanollama.backends.torch_backend import TorchBackend
from nanollama.errors import FormatError, UnsupportedError
from nanollama.formats.gguf_write import write_gguf
from nanollama.formats.strict_json import read_object
from nanollama.model.checkpoint import Checkpoint, open_gguf
from nanollama.model.families.config import Config
from nanollama.model.folder import open_folder
from nanollama.model.multimodal import text_config
from nanollama.model.registry import family_of_config
from nanollama.model.to_gguf import gguf_of_folder
from nanollama.model.weights import parameter_shapes

IDS = tuple(int(i) for i in np.random.default_rng(1).integers(0, VOCAB - 4, 40))
TEXT = {
    key: value for key, value in BASE.items() if key not in ("tie_word_embeddings", "attn_implementation")
}
VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}


def gemma3() -> transformers.PreTrainedModel:
    text = {
        **TEXT,
        "num_hidden_layers": 7,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 10,
        "sliding_window": WINDOW,
        "query_pre_attn_scalar": 10,
    }
    config = transformers.Gemma3Config(
        text_config=text, vision_config=VISION, mm_tokens_per_image=4, image_token_index=VOCAB - 1
    )
    return transformers.Gemma3ForConditionalGeneration(config)


def mistral3() -> transformers.PreTrainedModel:
    config = transformers.Mistral3Config(
        text_config={**TEXT, "model_type": "mistral", "head_dim": 10, "sliding_window": None},
        vision_config={**VISION, "model_type": "pixtral", "head_dim": 8},
        image_token_index=VOCAB - 1,
        tie_word_embeddings=False,
    )
    return transformers.Mistral3ForConditionalGeneration(config)


MODELS: dict[str, Callable[[], transformers.PreTrainedModel]] = {"gemma3": gemma3, "mistral3": mistral3}


def older(name: str) -> str:
    """The name of transformers before 4.52, which the first releases of both models have."""
    return name


def newer(name: str) -> str:
    """The name inside transformers since then, which fine-tunes are saved under."""
    if name.startswith("language_model.model."):
        return name.replace("language_model.model.", "model.language_model.", 1)
    return name.removeprefix("language_model.") if "lm_head" in name else f"model.{name}"


LAYOUTS: dict[str, Callable[[str], str]] = {"older": older, "newer": newer}


@pytest.fixture(scope="module", params=MODELS)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    torch.manual_seed(3)
    model = MODELS[request.param]().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.2 if parameter.ndim == 1 else 1.5 * parameter.shape[-1] ** -0.5
            plain_norm = "norm" in name and request.param == "mistral3"
            parameter.copy_(float(plain_norm) + spread * torch.randn_like(parameter))
        logits = model(torch.tensor([IDS])).logits[0].float().numpy()
    folder = tmp_path_factory.mktemp("toy") / request.param
    model.save_pretrained(folder)
    return {"folder": folder, "logits": logits, "model": model}


@pytest.fixture(params=LAYOUTS)
def folder(request: pytest.FixtureRequest, saved: Mapping[str, Any], tmp_path: Path) -> Path:
    """The toy under the names of one of the layouts."""
    target = tmp_path / "toy"
    target.mkdir()
    (target / "config.json").write_text((saved["folder"] / "config.json").read_text())
    tensors = load_file(saved["folder"] / "model.safetensors")
    assert any(name.startswith("vision_tower.") for name in tensors)
    assert any(name.startswith("language_model.model.") for name in tensors)
    save_file({LAYOUTS[request.param](name): t for name, t in tensors.items()}, target / "model.safetensors")
    return target


def opened(folder: Path) -> Checkpoint:
    with pytest.warns(
        UserWarning, match=r"^toy: images are not supported: .* of .*vision_tower are left out"
    ):
        return open_folder(folder)


def logits(backend: TorchBackend | NativeBackend) -> np.ndarray:
    return backend.step(ModelInput(IDS, (SequenceInput(len(IDS), 0, (0, 1)),), tuple(range(len(IDS)))))


def test_the_text_part_equals_transformers(saved: Mapping[str, Any], folder: Path) -> None:
    checkpoint = opened(folder)
    arguments = (checkpoint.spec, checkpoint.tensors)
    torch_backend = TorchBackend(*arguments, device="cpu", dtype="float32", cache_tokens=64)
    assert np.abs(logits(torch_backend) - saved["logits"]).max() < 1e-4
    native = NativeBackend(*arguments, library=Library(find_library()), threads=1, cache_tokens=64)
    assert np.abs(logits(native) - saved["logits"]).max() < 1e-4
    native.close()
    assert set(checkpoint.tensors) == set(parameter_shapes(checkpoint.spec))
    checkpoint.close()


def test_its_gguf_file_is_the_same_model(saved: Mapping[str, Any], folder: Path) -> None:
    checkpoint = opened(folder)
    config = text_config(read_object(folder / "config.json"))
    family = family_of_config(config)
    typed = Config(config, checkpoint.tensors.__contains__)
    metadata, sources = gguf_of_folder(family, checkpoint.spec, typed, checkpoint.tensors)
    path = folder / "toy.gguf"
    write_gguf(path, metadata | {"tokenizer.ggml.model": "none"}, sources)
    checkpoint.close()
    close = 5e-3 if family.gguf == "gemma3" else 1e-4  # its GELU comes from a table of half-precision numbers
    assert np.abs(llama_cpp_logits(path, IDS) - saved["logits"]).max() < close
    file = open_gguf(path)
    backend = TorchBackend(file.spec, file.tensors, device="cpu", dtype="float32", cache_tokens=64)
    assert np.abs(logits(backend) - saved["logits"]).max() < 1e-4
    file.close()


def test_what_the_first_release_leaves_out_has_its_value(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    if config["model_type"] != "gemma3":
        pytest.skip("the other model states everything")
    inner = config["text_config"]
    shorter = {key: inner[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers")}
    shorter |= {"head_dim": 10, "vocab_size": VOCAB, "sliding_window": WINDOW, "query_pre_attn_scalar": 10}
    edit(folder / "config.json", text_config=shorter, tie_word_embeddings=..., eos_token_id=[1, 50])
    checkpoint = opened(folder)
    assert checkpoint.spec.attention.num_heads == 8
    assert checkpoint.spec.attention.num_kv_heads == 4
    assert checkpoint.spec.max_context == 131072
    assert checkpoint.spec.tied_head
    checkpoint.close()
    assert text_config(read_object(folder / "config.json"))["eos_token_id"] == [1, 50]
    edit(folder / "config.json", text_config={})
    whole = text_config(read_object(folder / "config.json"))
    stated = transformers.Gemma3TextConfig()
    for key in ("vocab_size", "num_attention_heads", "num_key_value_heads", "head_dim", "sliding_window"):
        assert whole[key] == getattr(stated, key), key
    assert whole["max_position_embeddings"] == stated.max_position_embeddings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_config": ...}, "text_config in config.json is missing"),
        ({"text_config": [1]}, r"text_config in config.json is \[1\]"),
        ({"text_config": {"model_type": "gemma3"}}, "'gemma3' is not supported"),
        ({"text_config": {"model_type": "ministral3"}}, "'ministral3' is not supported"),
        ({"text_config": {"model_type": 3}}, "model_type in config.json is 3"),
    ],
)
def test_a_config_without_a_text_model_is_refused(
    folder: Path, changes: dict[str, Any], message: str
) -> None:
    edit(folder / "config.json", **changes)
    with pytest.raises((FormatError, UnsupportedError), match=message):
        open_folder(folder)


def test_any_other_tensor_is_still_an_error(folder: Path) -> None:
    path = folder / "model.safetensors"
    save_file(load_file(path) | {"audio_tower.weight": torch.ones(3)}, path)
    checkpoint = opened(folder)
    with pytest.raises(
        FormatError, match=r"1 tensor that the model does not use, the first audio_tower\.weight"
    ):
        TorchBackend(checkpoint.spec, checkpoint.tensors, device="cpu", dtype="float32", cache_tokens=32)
    checkpoint.close()


def test_one_tensor_in_both_layouts_is_an_error(folder: Path) -> None:
    path = folder / "model.safetensors"
    twice = {
        f"{prefix}norm.weight": torch.ones(48)
        for prefix in ("language_model.model.", "model.language_model.")
    }
    save_file(load_file(path) | twice, path)
    with pytest.raises(FormatError, match=r"are both model\.norm\.weight of the language model"):
        open_folder(folder)
