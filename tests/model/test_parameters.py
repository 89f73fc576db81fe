"""However a checkpoint stores its parameters, they come out the same, one by one and under one name."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from checkpoints import make, opened
from nanollama.errors import FormatError
from nanollama.model.parameters import parameters
from toys import llama_spec, make_toy, packed


@pytest.mark.parametrize("case", ["mixtral", "qwen3_moe"])
def test_experts_stacked_in_memory_are_those_saved_apart(case: str, tmp_path: Path) -> None:
    saved = make(case, tmp_path)
    stacked = {name: t.numpy() for name, t in saved.model.state_dict().items()}
    assert any(name.endswith("experts.gate_up_proj") for name in stacked)
    assert not any(name.endswith("experts.gate_up_proj") for name in saved.arrays)
    _, apart = opened(saved.config, saved.arrays)
    _, together = opened(saved.config, stacked)
    assert set(apart) == set(together)
    for name, tensor in apart.items():
        assert np.array_equal(tensor.float32(), together[name].float32()), name


def test_parts_are_views_that_read_nothing() -> None:
    def never() -> memoryview:
        raise AssertionError("read while opening")

    toy = make_toy("llama")
    a, inner = toy.spec.attention, toy.spec.mlp.intermediate_size
    fused = {
        "model.layers.0.self_attn.qkv_proj.weight": (a.q_size + 2 * a.kv_size, 64),
        "model.layers.0.mlp.gate_up_proj.weight": (2 * inner, 64),
        "model.norm.weight": (64,),
    }
    tensors = {
        name: replace(packed(name, np.zeros(shape, np.float32)), read=never) for name, shape in fused.items()
    }
    found = parameters(toy.spec, tensors, norm_offset=1.0)
    assert {name: tensor.shape for name, tensor in found.items()} == {
        "model.layers.0.self_attn.q_proj.weight": (a.q_size, 64),
        "model.layers.0.self_attn.k_proj.weight": (a.kv_size, 64),
        "model.layers.0.self_attn.v_proj.weight": (a.kv_size, 64),
        "model.layers.0.mlp.gate_proj.weight": (inner, 64),
        "model.layers.0.mlp.up_proj.weight": (inner, 64),
        "model.norm.weight": (64,),
    }


def test_what_a_norm_lacks_is_added_to_norms_alone() -> None:
    ones = np.ones(4, np.float32)
    names = ("model.layers.0.input_layernorm.weight", "model.layers.0.self_attn.q_norm.weight", "odd.weight")
    found = parameters(llama_spec(), {name: packed(name, ones) for name in names}, norm_offset=1.0)
    assert [found[name].float32()[0] for name in names] == [2.0, 2.0, 1.0]


def test_what_the_spec_has_is_left_out() -> None:
    names = ("model.layers.0.self_attn.rotary_emb.inv_freq", "lm_head.weight")
    tensors = {name: packed(name, np.ones(4, np.float32)) for name in names}
    assert parameters(llama_spec(tied=True), tensors) == {}
    assert set(parameters(llama_spec(), tensors)) == {"lm_head.weight"}


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("model.layers.0.self_attn.qkv_proj.weight", (159, 64), "has 159 rows; expected 160"),
        ("model.layers.0.mlp.gate_up_proj.weight", (96, 64), "has 96 rows; expected 192"),
        ("model.layers.0.mlp.experts.gate_up_proj", (4, 192, 64), "a matrix for each of 5 experts"),
        ("model.layers.0.mlp.experts.down_proj.bias", (5, 64, 1), "a vector for each of 5 experts"),
    ],
)
def test_a_tensor_of_the_wrong_size_is_named(name: str, shape: tuple[int, ...], message: str) -> None:
    kind = "experts" if "experts" in name else "llama"
    tensors = {name: packed(name, np.zeros(shape, np.float32))}
    with pytest.raises(FormatError, match=f"{name}.*{message}"):
        parameters(make_toy(kind).spec, tensors)
