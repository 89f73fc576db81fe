"""The shapes of famous models have the sizes they are famous for, and their random weights behave."""

from math import prod

import numpy as np
import pytest

from nanollama.errors import UsageError
from nanollama.model.checkpoint import PackedTensor
from nanollama.model.random_weights import TYPES, random_blocks, random_tensors
from nanollama.model.shapes import SHAPES, shape_spec
from nanollama.model.weights import parameter_shapes
from nanollama.quant.decode import dequantize
from nanollama.quant.formats import FORMATS

PARAMETERS = {  # published counts, in billions
    "llama-3.1-8b": 8.03,
    "llama-3.2-1b": 1.236,
    "llama-3.2-3b": 3.213,
    "qwen3-0.6b": 0.596,
    "qwen3-8b": 8.191,
    "qwen3-30b-a3b": 30.53,
    "qwen2.5-1.5b": 1.544,
    "deepseek-r1-1.5b": 1.777,
    "tinyllama-1.1b": 1.1,
    "smollm2-135m": 0.1345,
    "smollm2-1.7b": 1.711,
    "mistral-7b": 7.248,
    "gemma3-270m": 0.2681,
    "gemma3-1b": 1.0,
    "gemma3-4b": 3.88,
    "phi3-mini": 3.821,
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_has_as_many_parameters_as_its_model(name: str) -> None:
    total = sum(prod(shape) for shape in parameter_shapes(shape_spec(name)).values())
    assert total == pytest.approx(PARAMETERS[name] * 1e9, rel=2e-3)


def test_an_unknown_shape_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="known are llama-3"):
        shape_spec("llama-9")


@pytest.mark.parametrize("name", TYPES)
def test_random_weights_have_the_spread_asked_for(name: str) -> None:
    n = 256 * 400
    blocks = random_blocks(FORMATS[name], n, 0.05, 3)
    weights = dequantize(FORMATS[name], blocks, (n,))
    assert abs(weights.mean()) < 0.01
    assert weights.std() == pytest.approx(0.05, rel=0.25)


def test_random_tensors_fill_a_model_and_are_the_same_each_time() -> None:
    spec = shape_spec("smollm2-135m")
    tensors = random_tensors(spec, "Q4_K")
    assert {name: tensor.shape for name, tensor in tensors.items()} == parameter_shapes(spec)
    # 576 is no multiple of 256: the next larger type takes the place of Q4_K, and the head has six bits.
    assert tensors["model.layers.0.mlp.up_proj.weight"].fmt.name == "Q5_0"
    assert tensors["model.layers.0.mlp.down_proj.weight"].fmt.name == "Q4_K"
    assert tensors["model.embed_tokens.weight"].fmt.name == "Q8_0"
    norm: PackedTensor = tensors["model.norm.weight"]
    np.testing.assert_array_equal(norm.float32(), np.ones(576, np.float32))
    down = "model.layers.3.mlp.down_proj.weight"
    assert bytes(tensors[down].read()) == bytes(random_tensors(spec, "Q4_K")[down].read())


def test_a_type_that_is_not_known_is_refused() -> None:
    with pytest.raises(UsageError, match="expected one of F32"):
        random_tensors(shape_spec("smollm2-135m"), "Q2_K")
