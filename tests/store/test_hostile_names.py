"""Hostile names and registers at the store itself: nothing outside its folder changes or is deleted."""

import json
import random
from contextlib import suppress

import pytest

from hostile import COUNT, KEPT, WRITTEN_DOWN, Place, hostile_texts
from models import gguf_bytes
from nanollama.errors import NanollamaError
from nanollama.store.names import ModelName
from nanollama.store.plans import HUB_ONLY
from nanollama.store.registry import Registry


@pytest.fixture
def place(tmp_path, monkeypatch):
    place = Place(tmp_path)
    monkeypatch.setenv("HOME", str(place.home))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.chdir(place.work)
    before = place.outside()
    yield place
    assert place.outside() == before


@pytest.mark.parametrize("action", ["locate", "copy", "remove", "pull", "verify"])
def test_no_text_from_outside_changes_anything_but_the_store(action, place):
    store = place.store(catalogue=())
    actions = {
        "locate": lambda text: store.locate(text, fetch=False),
        "copy": lambda text: store.copy(ModelName.parse(KEPT), ModelName.parse(text), replacing=True),
        "remove": lambda text: store.remove(ModelName.parse(text), delete_file=True),
        "pull": lambda text: store.pull(text, hosts=HUB_ONLY),
        "verify": lambda text: store.verify(ModelName.parse(text)),
    }
    for text in hostile_texts(action, COUNT // 5):
        with suppress(NanollamaError):
            actions[action](text)


def test_a_register_full_of_hostile_entries_deletes_nothing_outside_the_store(place):
    chooser = random.Random(6)
    paths = [
        "../../../secret",
        "/etc/passwd",
        str(place.folder / "secret"),
        "..",
        ".",
        "a/../../../../b.gguf",
        "~/m.gguf",
    ]
    models = {}
    for number in range(100):
        models[f"m{number}:latest"] = {
            "format": chooser.choice(["gguf", "safetensors"]),
            "path": chooser.choice([*paths, chooser.choice(WRITTEN_DOWN)]),
            "size": chooser.choice([6, len(gguf_bytes())]),
            "modified": "2026-01-01T00:00:00+00:00",
            "owned": chooser.choice([True, True, False]),
            "files": [
                {
                    "name": chooser.choice([*paths, "m.gguf", "secret", chooser.choice(WRITTEN_DOWN)]),
                    "size": chooser.choice([6, len(gguf_bytes())]),
                }
            ],
        }
    Registry(place.root).path.write_text(json.dumps({"version": 1, "models": models}))
    store = place.store(catalogue=())
    store.list()
    for text in models:
        try:
            store.remove(ModelName.parse(text))
        except NanollamaError:
            continue
