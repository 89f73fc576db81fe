"""Rotations out of configurations: every scaling equals transformers', in both forms a config.json has."""

from typing import Any

import pytest
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from nanollama.errors import FormatError, UnsupportedError
from nanollama.model import rope
from nanollama.model.families.config import Config
from nanollama.model.families.rotation import rope_of_config
from nanollama.model.families.shape import Shape

SIZES = {
    "vocab_size": 61,
    "hidden_size": 512,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
}
YARN = {"factor": 4.0, "original_max_position_embeddings": 8192}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
LONGROPE = {
    "short_factor": [1.0 + i / 32 for i in range(32)],
    "long_factor": [1.0 + i for i in range(32)],
    "original_max_position_embeddings": 4096,
}
SCALINGS = [
    ("linear", {"factor": 4.0}),
    ("dynamic", {"factor": 4.0}),
    ("yarn", YARN),
    ("yarn", YARN | {"beta_fast": 16.0, "beta_slow": 2.0}),
    ("yarn", YARN | {"truncate": False}),
    ("yarn", YARN | {"attention_factor": 0.8}),
    ("yarn", YARN | {"mscale": 0.7, "mscale_all_dim": 1.2}),
    ("llama3", LLAMA3),
    ("longrope", LONGROPE),
    ("longrope", LONGROPE | {"attention_factor": 1.3}),
    ("longrope", LONGROPE | {"factor": 2.0}),
]


class RopeConfig:
    """As much of a transformers configuration as its rope functions read."""

    def __init__(self, parameters: dict[str, Any]) -> None:
        self.rope_parameters = {"rope_theta": 500000.0, **parameters}
        self.head_dim, self.hidden_size, self.num_attention_heads = 64, 512, 8
        self.max_position_embeddings = 32768

    def standardize_rope_params(self) -> None:
        pass


def config(**values: Any) -> Config:
    return Config(SIZES | values, lambda name: False)


def rotation(**values: Any) -> Any:
    return rope_of_config(config(**values), Shape.of_config(config(**values)))


@pytest.mark.parametrize("form", ["rope_parameters", "rope_scaling", "rope_scaling of old"])
@pytest.mark.parametrize(("kind", "numbers"), SCALINGS)
def test_a_scaling_equals_transformers(kind: str, numbers: dict[str, Any], form: str) -> None:
    theirs, magnitude = ROPE_INIT_FUNCTIONS[kind](RopeConfig({"rope_type": kind, **numbers}), "cpu")
    if form == "rope_parameters":
        ours = rotation(rope_parameters={"rope_type": kind, "rope_theta": 500000.0, **numbers})
    else:
        key = "type" if form == "rope_scaling of old" else "rope_type"
        ours = rotation(rope_theta=500000.0, rope_scaling={key: kind, **numbers})
    assert ours.frequencies == pytest.approx(theirs.tolist(), rel=1e-5)
    assert ours.magnitude == pytest.approx(magnitude)


def test_a_stretched_window_equals_transformers() -> None:
    """Dynamic scaling by the length of the window, and LongRoPE's other set of divisors."""
    for kind, numbers, length in (
        ("dynamic", {"factor": 4.0}, 4 * 32768),
        ("dynamic", {"factor": 4.0}, 32769),
        ("dynamic", {"factor": 3.0}, 50000),
        ("longrope", LONGROPE, 4097),
    ):
        asked = RopeConfig({"rope_type": kind, **numbers})
        theirs, _ = ROPE_INIT_FUNCTIONS[kind](asked, "cpu", seq_len=length)
        ours = rotation(rope_theta=500000.0, rope_scaling={"rope_type": kind, **numbers})
        assert ours.for_context(length).frequencies == pytest.approx(theirs.tolist(), rel=1e-5)


def test_dynamic_scaling_widens_the_window() -> None:
    stretched = config(rope_scaling={"type": "dynamic", "factor": 2.0})
    assert Shape.of_config(stretched).max_context == 2 * 32768


def test_each_kind_of_layer_has_a_rotation_of_its_own() -> None:
    asked = config(
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        }
    )
    shape = Shape.of_config(asked)
    local = rope_of_config(asked, shape, layers="sliding_attention")
    everywhere = rope_of_config(asked, shape, layers="full_attention")
    assert local.frequencies == rope.frequencies(10000.0, 64)
    assert everywhere.frequencies == rope.linear(rope.frequencies(1e6, 64), 8.0)


def test_a_part_of_each_head_is_rotated() -> None:
    assert rotation(partial_rotary_factor=0.75).dim == 48
    assert rotation(rope_parameters={"partial_rotary_factor": 0.5}).dim == 32


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rope_theta": -1}, "rope_theta in config.json is -1; expected a positive number"),
        ({"rope_scaling": [4]}, r"rope_scaling in config.json is \[4\]; expected an object"),
        ({"rope_scaling": {"type": "linear"}}, r"rope_scaling\.factor in config.json is missing"),
        ({"rope_scaling": {"type": 3}}, r"rope_scaling\.type in config.json is 3; expected a text"),
        ({"rope_scaling": {"type": "longrope", "short_factor": [1.0]}}, "a list of 32 positive numbers"),
        ({"partial_rotary_factor": 0.99}, "partial_rotary_factor in config.json is 0.99, 63 of"),
        ({"partial_rotary_factor": 2.0}, "partial_rotary_factor in config.json is 2, 128 of"),
        ({"rope_theta": 1.0, "rope_scaling": {"type": "yarn", **YARN}}, "gives no frequencies"),
        ({"rope_scaling": {"rope_type": "llama3", **LLAMA3, "high_freq_factor": 1.0}}, "no frequencies"),
    ],
)
def test_numbers_that_make_no_rotation_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        rotation(**values)


def test_a_scaling_that_is_not_known_is_named() -> None:
    with pytest.raises(
        UnsupportedError, match=r"'magic' in config.json is not supported; supported are .*yarn"
    ):
        rotation(rope_scaling={"rope_type": "magic"})
