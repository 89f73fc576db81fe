"""config.json to ModelSpec: a clear refusal of every value that can't be or is not followed."""

import math
from typing import Any

import pytest

from nanollama.errors import FormatError, UnsupportedError
from nanollama.model.families.config import Config
from nanollama.model.registry import family_of_config
from nanollama.model.spec import ModelSpec

SIZES = {
    "vocab_size": 61,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


def spec_of(model_type: str, tensors: tuple[str, ...] = (), **values: Any) -> ModelSpec:
    settings = {"model_type": model_type, **SIZES, **values}
    return family_of_config(settings).from_config(Config(settings, tensors.__contains__))


@pytest.mark.parametrize("key", [key for key in SIZES if key not in ("num_key_value_heads", "rms_norm_eps")])
@pytest.mark.parametrize("value", [None, 0, -1, 2**63, "8", True, 1.5, [1], math.nan])
def test_a_size_that_cannot_be_is_refused_with_its_key(key: str, value: object) -> None:
    with pytest.raises(FormatError, match=f"{key} in config.json is .*; expected"):
        spec_of("llama", **{key: value})


@pytest.mark.parametrize(
    ("model_type", "values", "message"),
    [
        ("granite", {"residual_multiplier": 1e-320}, "residual_multiplier .* is 1e-320; expected a positive"),
        ("llama", {"head_dim": 1 << 20}, "head_dim .* is 1048576; expected a whole number from 1 to 65536"),
        ("llama", {"num_key_value_heads": 3}, "8 attention heads and 3 key-value heads"),
        ("llama", {"num_attention_heads": 7, "num_key_value_heads": 1}, "not a multiple of the 7"),
        ("llama", {"hidden_act": "relu"}, "hidden_act in config.json is 'relu'; expected 'silu'"),
        ("llama", {"tie_word_embeddings": "yes"}, "tie_word_embeddings .*; expected true or false"),
        ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 5}, "to 5 of 4 experts"),
        ("gemma3_text", {"sliding_window": 8, "layer_types": ["full_attention"]}, "a list of 4 values"),
        ("gemma3_text", {"sliding_window": 8, "attn_logit_softcapping": 3.0}, "expected None"),
        ("smollm3", {"no_rope_layers": [1, 0, 1, 2]}, "a list of 4 values, one a layer, out of 0, 1"),
        ("olmo2", {"attention_bias": True}, "attention_bias in config.json is True; expected False"),
        ("gpt_oss", {"swiglu_limit": 3.0}, "swiglu_limit in config.json is 3.0; expected 7.0"),
    ],
)
def test_values_that_are_not_followed_are_refused(
    model_type: str, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(FormatError, match=message):
        spec_of(model_type, **values)


def test_experts_in_some_layers_only_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="experts in some of its layers only"):
        spec_of("qwen3_moe", **EXPERTS, mlp_only_layers=[0])


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({}, FormatError, "model_type in config.json is missing"),
        ({"model_type": 3}, FormatError, "model_type in config.json is 3"),
        ({"model_type": "mamba"}, UnsupportedError, "'mamba' is not supported; supported are .*llama"),
        (
            {"model_type": "odd", "auto_map": {"AutoModel": "code.Model"}},
            UnsupportedError,
            "code in the model's own repository, which is never run",
        ),
    ],
)
def test_a_model_without_a_family_is_refused(
    values: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        family_of_config(values)


def test_what_is_not_said_has_the_default_of_the_family() -> None:
    assert spec_of("gemma3_text", sliding_window=8, hidden_act=None).layers[3].window == 8
    assert [layer.rope is None for layer in spec_of("smollm3").layers] == [False, False, False, True]
    assert [
        layer.window for layer in spec_of("gpt_oss", num_local_experts=4, num_experts_per_tok=2).layers
    ] == [
        128,
        None,
        128,
        None,
    ]
    assert spec_of("llama").attention.num_kv_heads == 2
    assert spec_of("llama", num_key_value_heads=None).attention.num_kv_heads == 8


def test_the_head_is_tied_if_the_checkpoint_says_so_or_has_none() -> None:
    assert spec_of("llama").tied_head
    assert not spec_of("llama", tensors=("lm_head.weight",)).tied_head
    assert spec_of("llama", tensors=("lm_head.weight",), tie_word_embeddings=True).tied_head


def test_windows_that_are_switched_off_do_not_count() -> None:
    windows = {"sliding_window": 8, "max_window_layers": 2}
    assert {layer.window for layer in spec_of("qwen2", **windows, use_sliding_window=False).layers} == {None}
    on = spec_of("qwen2", **windows, use_sliding_window=True)
    assert [layer.window for layer in on.layers] == [None, None, 8, 8]


def test_granite_multipliers_fold_into_what_every_model_has() -> None:
    spec = spec_of("granite", embedding_multiplier=12.0, residual_multiplier=0.5, logits_scaling=8.0)
    assert (spec.embedding_scale, spec.logit_scale, spec.norm.eps) == (24.0, 0.125, 4e-5)
