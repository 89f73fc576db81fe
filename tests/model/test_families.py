"""Metadata to ModelSpec: what a real file says, and a clear refusal of every value that can't be."""

import math
from pathlib import Path
from typing import Any

import pytest
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from nanollama.errors import FormatError, UnsupportedError
from nanollama.model import rope
from nanollama.model.checkpoint import open_gguf
from nanollama.model.families.metadata import Metadata
from nanollama.model.registry import FAMILIES, family_of

LLAMA = {
    "llama.context_length": 512,
    "llama.embedding_length": 64,
    "llama.block_count": 2,
    "llama.feed_forward_length": 128,
    "llama.attention.head_count": 8,
    "llama.attention.head_count_kv": 4,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
}
GEMMA3 = {key.replace("llama", "gemma3"): value for key, value in LLAMA.items()} | {
    "gemma3.attention.key_length": 16,
    "gemma3.attention.sliding_window": 32,
    "gemma3.rope.freq_base": 1e6,
    "gemma3.block_count": 7,
}


def metadata(
    values: dict[str, Any], tensors: tuple[str, ...] = (), vectors: dict[str, tuple[float, ...]] | None = None
) -> Metadata:
    architecture = next(iter(values)).split(".")[0]
    return Metadata(architecture, values, (vectors or {}).get, tensors.__contains__, 100)


def llama(changes: dict[str, Any], **kwargs: Any) -> Any:
    values = {key: value for key, value in (LLAMA | changes).items() if value is not None}
    return FAMILIES["llama"].from_gguf(metadata(values, **kwargs))


def test_a_llama_file_without_an_output_matrix_is_tied() -> None:
    assert llama({}).tied_head
    assert not llama({}, tensors=("output.weight",)).tied_head


def test_gemma_alternates_local_and_global_layers() -> None:
    spec = FAMILIES["gemma3"].from_gguf(metadata(GEMMA3))
    assert [layer.window for layer in spec.layers] == [32] * 5 + [None, 32]
    assert spec.layers[0].rope.frequencies == rope.frequencies(10000.0, 16)
    assert spec.layers[5].rope.frequencies == rope.frequencies(1e6, 16)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[(key, None) for key in LLAMA if not key.endswith("head_count_kv")],
        *[(key, bad) for key in LLAMA for bad in (0, -1, 2**63, "8", True, [1, 2], [], math.inf, math.nan)],
        ("llama.block_count", 2**31),
        ("llama.attention.head_count", 2**25),
        ("llama.attention.key_length", 2**40),
        ("llama.rope.dimension_count", 7),
        ("llama.rope.freq_base", -1.0),
        ("llama.rope.scaling.type", 3),
    ],
)
def test_a_value_that_cannot_be_is_refused_with_its_key(key: str, value: object) -> None:
    with pytest.raises(FormatError, match=key.removeprefix("llama.")):
        llama({key: value} | ({"llama.rope.scaling.factor": 2.0} if "scaling" in key else {}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"llama.attention.head_count_kv": 3}, "8 attention heads and 3 key-value heads"),
        ({"llama.attention.head_count_kv": 16}, "8 attention heads and 16 key-value heads"),
        ({"llama.attention.head_count": 7}, "not a multiple of the 7 attention heads"),
        ({"llama.rope.dimension_count": 10}, "rotates 10 dimensions of a head that has 8"),
    ],
)
def test_values_that_contradict_each_other_are_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        llama(changes)


def test_a_rope_scaling_that_is_not_known_is_named() -> None:
    with pytest.raises(UnsupportedError, match="'magic'; supported are none, linear and yarn"):
        llama({"llama.rope.scaling.type": "magic", "llama.rope.scaling.factor": 2.0})


def test_an_unknown_architecture_is_named_with_those_that_work() -> None:
    with pytest.raises(
        UnsupportedError, match=r"^the architecture 'mamba' is not supported; supported are .*llama"
    ):
        family_of("mamba")


def test_llama3_divisors_scale_the_frequencies() -> None:
    spec = llama({}, vectors={"rope_freqs.weight": (1.0, 2.0, 4.0, 8.0)})
    base = rope.frequencies(10000.0, 8)
    assert spec.layers[0].rope.frequencies == tuple(f / d for f, d in zip(base, (1, 2, 4, 8), strict=True))


@pytest.mark.parametrize("divisors", [(1.0, 2.0), (1.0, 2.0, 0.0, 1.0), (1.0, math.nan, 1.0, 1.0)])
def test_divisors_that_do_not_fit_are_refused(divisors: tuple[float, ...]) -> None:
    with pytest.raises(FormatError, match="rope_freqs"):
        llama({}, vectors={"rope_freqs.weight": divisors})


class RopeConfig:
    """As much of a transformers configuration as its rope functions read."""

    def __init__(self, parameters: dict[str, Any]) -> None:
        self.rope_parameters = {"rope_theta": 10000.0, **parameters}
        self.head_dim, self.hidden_size, self.num_attention_heads = 64, 512, 8
        self.max_position_embeddings = 32768

    def standardize_rope_params(self) -> None:
        pass


@pytest.mark.parametrize(
    ("scaling", "parameters"),
    [
        ({"type": "linear", "factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        (
            {"type": "yarn", "factor": 4.0, "original_context_length": 8192},
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192},
        ),
    ],
)
def test_scaled_frequencies_equal_transformers(scaling: dict[str, Any], parameters: dict[str, Any]) -> None:
    values = {f"llama.rope.scaling.{key}": value for key, value in scaling.items()}
    spec = llama(values | {"llama.attention.key_length": 64})
    theirs, magnitude = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](RopeConfig(parameters), "cpu")
    ours = spec.layers[0].rope
    assert ours.frequencies == pytest.approx(theirs.tolist(), rel=1e-5)
    assert ours.magnitude == pytest.approx(magnitude)


@pytest.mark.model
def test_the_spec_of_smollm2(smollm2_path: Path) -> None:
    checkpoint = open_gguf(smollm2_path)
    spec = checkpoint.spec
    checkpoint.close()
    assert (spec.family, spec.num_layers, spec.hidden_size, spec.vocab_size) == ("llama", 30, 576, 49152)
    assert (spec.attention.num_heads, spec.attention.num_kv_heads, spec.attention.head_dim) == (9, 3, 64)
    assert spec.tied_head
