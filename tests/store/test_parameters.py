"""The table of Ollama's parameters: types, ranges, and what they are here."""

import pytest

from nanollama import inputs
from nanollama.errors import UsageError
from nanollama.sampling.params import SETTINGS, sampling_params
from nanollama.store import parameters
from nanollama.store.parameters import (
    DEPRECATED,
    PARAMETERS,
    Settings,
    check_parameter,
    read_parameter,
    settings_of,
)

OLLAMAS = {
    "num_keep": 4, "seed": -1, "num_predict": -1, "top_k": 40, "top_p": 0.9, "min_p": 0.0, "typical_p": 1.0,
    "repeat_last_n": 64, "temperature": 0.8, "repeat_penalty": 1.0, "presence_penalty": 0.0,
    "frequency_penalty": 0.0, "stop": (), "num_ctx": None, "num_batch": 512, "num_gpu": -1, "main_gpu": None,
    "use_mmap": None, "num_thread": 0, "draft_num_predict": 4,
}  # fmt: skip


def test_the_table_has_every_parameter_of_ollama_with_its_default() -> None:
    assert {name: row.default for name, row in PARAMETERS.items()} == OLLAMAS
    assert not DEPRECATED & set(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_parameter_is_mapped_or_has_a_reason_and_takes_its_own_default(name: str) -> None:
    row = PARAMETERS[name]
    assert row.setting is not None or row.why
    if row.default is not None:
        assert check_parameter(name, row.default) == row.default


@pytest.mark.parametrize("name", [name for name, row in PARAMETERS.items() if row.setting in SETTINGS])
def test_the_ranges_are_those_of_our_settings(name: str) -> None:
    row, setting = PARAMETERS[name], SETTINGS[PARAMETERS[name].setting]
    assert (row.kind, row.minimum, row.maximum) == (setting.kind.__name__, setting.minimum, setting.maximum)


def test_the_limits_of_stop_texts_are_those_of_requests() -> None:
    assert (parameters.MAX_STOPS, parameters.MAX_STOP_CHARS) == (inputs.MAX_STOPS, inputs.MAX_STOP_CHARS)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("temperature", "0", 0.0),
        ("temperature", "1e-1", 0.1),
        ("seed", "-7", -7),
        ("top_k", "+40", 40),
        ("use_mmap", "T", True),
        ("use_mmap", "0", False),
        ("stop", "<|im_end|>", ("<|im_end|>",)),
    ],
)
def test_texts_are_read_as_the_type_of_the_parameter(name: str, text: str, value: object) -> None:
    read = read_parameter(name, text)
    assert (read, type(read)) == (value, type(value))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("temprature", "1", "unknown parameter 'temprature': did you mean temperature?"),
        ("Temperature", "1", "did you mean temperature?"),
        ("zzz", "1", "known are temperature, top_k"),
        ("top_k", "1.5", "top_k is '1.5'; expected a whole number of at least 0"),
        ("top_k", "", "top_k is ''"),
        ("temperature", "hot", "expected a number from 0 to 100"),
        ("temperature", "nan", "expected a number from 0 to 100"),
        ("typical_p", "0.5", "expected 1, since 1.0 is off, and there is no typical sampling"),
        ("use_mmap", "yes", "expected true or false"),
        ("stop", "", "expected a text of 1 to 256 characters"),
        ("num_ctx", "1", "of at least 8"),
        ("seed", "9" * 20, "seed is 99999"),
    ],
)
def test_what_a_parameter_does_not_take_is_refused_with_what_it_takes(name, text, message) -> None:
    with pytest.raises(UsageError) as caught:
        read_parameter(name, text)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", True),
        ("seed", "1"),
        ("temperature", None),
        ("use_mmap", 1),
        ("stop", [1]),
        ("stop", ["a"] * 17),
    ],
)
def test_values_of_another_type_are_refused(name: str, value: object) -> None:
    with pytest.raises(UsageError):
        check_parameter(name, value)


def test_a_whole_float_is_an_integer_where_one_is_needed() -> None:
    assert repr(check_parameter("top_k", 40.0)) == "40"


def test_parameters_become_our_settings() -> None:
    given = {"temperature": 0.5, "seed": 3, "stop": ("a",), "num_predict": 9, "num_ctx": 64, "num_thread": 2}
    assert settings_of(given) == Settings({"temperature": 0.5, "seed": 3}, ("a",), 9, 64, 2)


@pytest.mark.parametrize(
    "given",
    [
        {"seed": -1},
        {"num_predict": -1},
        {"num_predict": -2},
        {"num_predict": 0},
        {"num_thread": 0},
        {"num_gpu": 9},
    ]
    + [
        {name: row.default}
        for name, row in PARAMETERS.items()
        if row.setting is None and row.default is not None
    ],
)
def test_what_leaves_a_setting_as_it_is_or_is_harmless_sets_nothing(given: dict) -> None:
    assert settings_of(given) == Settings()


def test_no_layers_on_the_gpu_means_the_cpu() -> None:
    assert settings_of({"num_gpu": 0}).device == "cpu"


def test_settings_of_parameters_nobody_checked_are_refused() -> None:
    with pytest.raises(UsageError, match="temperature is 'hot'"):
        settings_of({"temperature": "hot"})


def test_the_sampler_takes_what_the_table_lets_through() -> None:
    edges = {
        name: edge
        for edge in (False, True)
        for name, row in PARAMETERS.items()
        if row.setting in SETTINGS
        for edge in [check_parameter(name, row.maximum if edge else row.minimum)]
    }
    sampling_params(settings_of(edges).sampling, {}, vocab_size=10)
