"""Variables set what flags set: ours before Ollama's, and a flag before both."""

import pytest

from nanollama.errors import UsageError
from nanollama.server.environment import VARIABLES, from_environment


@pytest.mark.parametrize(
    ("environ", "settings"),
    [
        ({}, {}),
        ({"OLLAMA_HOST": ""}, {}),
        ({"OLLAMA_HOST": "0.0.0.0"}, {"host": "0.0.0.0", "port": 11434}),
        ({"OLLAMA_HOST": "127.0.0.1:9000"}, {"host": "127.0.0.1", "port": 9000}),
        ({"OLLAMA_HOST": "http://box.local:80/"}, {"host": "box.local", "port": 80}),
        ({"OLLAMA_HOST": "[::1]:7"}, {"host": "::1", "port": 7}),
        ({"OLLAMA_HOST": ":7"}, {"port": 7}),
        ({"NANOLLAMA_HOST": "10.0.0.1"}, {"host": "10.0.0.1"}),
        ({"NANOLLAMA_HOST": "a:1", "OLLAMA_HOST": "b:2"}, {"host": "a", "port": 1}),
        ({"OLLAMA_KEEP_ALIVE": "-1"}, {"keep_alive_s": None}),
        ({"OLLAMA_KEEP_ALIVE": "-1m"}, {"keep_alive_s": None}),
        ({"OLLAMA_KEEP_ALIVE": "24h"}, {"keep_alive_s": 86400.0}),
        ({"OLLAMA_KEEP_ALIVE": "1h30m"}, {"keep_alive_s": 5400.0}),
        ({"OLLAMA_KEEP_ALIVE": "0"}, {"keep_alive_s": 0.0}),
        ({"NANOLLAMA_KEEP_ALIVE": "forever"}, {"keep_alive_s": None}),
        ({"OLLAMA_ORIGINS": "https://a.example, app://*"}, {"origins": ("https://a.example", "app://*")}),
        ({"OLLAMA_CONTEXT_LENGTH": "4096"}, {"n_ctx": 4096}),
        ({"OLLAMA_CONTEXT_LENGTH": "0"}, {}),
        ({"OLLAMA_NUM_PARALLEL": "4"}, {"max_seqs": 4}),
        ({"OLLAMA_MAX_LOADED_MODELS": "0"}, {}),
        ({"OLLAMA_MAX_LOADED_MODELS": "2"}, {"max_models": 2}),
        ({"OLLAMA_MAX_QUEUE": "512"}, {"max_queue": 512}),
        ({"OLLAMA_MAX_QUEUE": '"7"'}, {"max_queue": 7}),
    ],
)
def test_each_variable_is_read(environ, settings):
    assert from_environment(environ) == settings


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("OLLAMA_HOST", "https://box"),
        ("OLLAMA_HOST", "a b"),
        ("OLLAMA_HOST", "box:70000"),
        ("OLLAMA_KEEP_ALIVE", "soon"),
        ("OLLAMA_CONTEXT_LENGTH", "7"),
        ("NANOLLAMA_NUM_PARALLEL", "-1"),
        ("OLLAMA_MAX_QUEUE", "many"),
    ],
)
def test_a_wrong_one_is_named(name, text):
    with pytest.raises(UsageError, match=f"the variable {name} is"):
        from_environment({name: text})


def test_every_variable_has_a_name_of_its_own():
    names = [name for each in VARIABLES for name in (each.name, each.ollama)]
    assert len(set(names)) == len(names)
