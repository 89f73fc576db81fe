"""Ollama's folder is read as it is written, and nothing that a manifest says is trusted."""

import hashlib
import json
import random

import pytest

from models import gguf_bytes
from nanollama.errors import UsageError
from nanollama.store.imports import Imported, Skipped
from nanollama.store.names import ModelName
from nanollama.store.ollama import default_folder, ollama_models
from nanollama.store.recipe import Recipe
from nanollama.store.registry import is_complete
from nanollama.store.store import Store
from nanollama.types import Message

CHATML = """{{- range .Messages }}<|im_start|>{{ .Role }}
{{ .Content }}<|im_end|>
{{ end }}<|im_start|>assistant
"""


class OllamaFolder:
    """Writes manifests and blobs as Ollama does."""

    def __init__(self, root):
        self.root = root
        (root / "blobs").mkdir(parents=True)
        (root / "manifests").mkdir()

    def blob(self, content):
        digest = hashlib.sha256(content).hexdigest()
        (self.root / f"blobs/sha256-{digest}").write_bytes(content)
        return f"sha256:{digest}"

    def layer(self, kind, content):
        data = content if isinstance(content, bytes) else content.encode()
        digest = self.blob(data)
        return {"mediaType": f"application/vnd.ollama.image.{kind}", "digest": digest, "size": len(data)}

    def manifest(self, name, *layers):
        path = self.root / "manifests" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        value = {
            "schemaVersion": 2,
            "config": {"digest": self.blob(b"{}"), "size": 2},
            "layers": list(layers),
        }
        path.write_text(json.dumps(value))
        return path

    def model(self, **texts):
        return self.layer("model", gguf_bytes(**texts))

    def found(self):
        return list(ollama_models(self.root))


@pytest.fixture
def ollama(tmp_path):
    return OllamaFolder(tmp_path / "ollama")


def test_a_model_is_registered_where_it_lies_with_its_recipe(ollama, tmp_path):
    weights = ollama.model()
    ollama.manifest(
        "registry.ollama.ai/library/tiny/1b",
        weights,
        ollama.layer("template", CHATML),
        ollama.layer("system", "Be brief."),
        ollama.layer("params", '{"stop": ["<|im_end|>"], "temperature": 0.5, "num_ctx": 4096}'),
        ollama.layer("license", "MIT"),
        ollama.layer("license", "and more"),
        ollama.layer("messages", '[{"role": "user", "content": "Hi"}]'),
    )
    [found] = ollama.found()
    assert isinstance(found, Imported)
    record = found.record
    assert (str(record.name), record.owned, found.notes) == ("tiny:1b", False, ())
    assert record.path == ollama.root / "blobs" / weights["digest"].replace(":", "-")
    assert record.digest.text == weights["digest"]
    assert record.recipe.template is not None
    assert "<|im_start|>" in record.recipe.template
    assert record.recipe == Recipe(
        template=record.recipe.template,
        system="Be brief.",
        parameters={"stop": ("<|im_end|>",), "temperature": 0.5, "num_ctx": 4096},
        messages=(Message("user", "Hi"),),
        licences=("MIT", "and more"),
    )
    store = Store(tmp_path / "store", catalogue=())
    store.add(record)
    assert store.locate("tiny:1b").record == record
    assert store.verify(ModelName.parse("tiny:1b")).problems == ()
    assert store.remove(ModelName.parse("tiny:1b")).deleted == ()


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("registry.ollama.ai/library/a/latest", "a:latest"),
        ("registry.ollama.ai/me/a/1b-q4_K_M", "me/a:1b-q4_k_m"),
        ("hf.co/Me/Repo-GGUF/Q8_0", "hf.co/me/repo-gguf:q8_0"),
    ],
)
def test_names_are_ollamas_own(path, name, ollama):
    ollama.manifest(path, ollama.model())
    assert [str(found.record.name) for found in ollama.found()] == [name]


def test_what_has_no_equivalent_is_left_out_and_said(ollama):
    ollama.manifest(
        "registry.ollama.ai/library/a/latest",
        ollama.model(),
        ollama.layer("template", "{{ .Nobody.Knows }}"),
        ollama.layer("params", '{"temperature": "hot", "mirostat": 1, "top_k": 5}'),
        ollama.layer("projector", b"vision"),
    )
    [found] = ollama.found()
    assert found.record.recipe == Recipe(parameters={"top_k": 5})
    assert [note.partition(",")[0].partition("is")[0].strip() for note in found.notes] == [
        "the template in the weights",
        "its parameter temperature",
        "it has a part for images",
    ]


SKIPPED = {
    "an adapter": (lambda o: [o.model(), o.layer("adapter", b"x")], "it has an adapter"),
    "tensors": (lambda o: [o.layer("tensor", b"x")], "tensor by tensor"),
    "no weights": (lambda o: [o.layer("system", "x")], "0 layers of weights"),
    "two weights": (lambda o: [o.model(), o.model(general__name="b")], "2 layers of weights"),
    "no GGUF": (lambda o: [o.layer("model", b"nothing" * 9)], "not a GGUF file"),
    "a blob that is missing": (
        lambda o: [{**o.model(), "digest": "sha256:" + "0" * 64}],
        "missing or not of",
    ),
    "a blob of another size": (lambda o: [{**o.model(), "size": 5}], "missing or not of 5 bytes"),
    "a negative size": (lambda o: [{**o.model(), "size": -1}], "not an object of"),
    "a path as a digest": (lambda o: [{**o.model(), "digest": "sha256:../../../etc/passwd"}], "not a digest"),
    "an upper-case digest": (lambda o: [{**o.model(), "digest": "sha256:" + "A" * 64}], "not a digest"),
    "a layer that is none": (lambda o: [[]], "not an object of"),
    "no layers": (lambda o: [], "does not list 1 to"),
    "a million layers": (lambda o: [1] * 1_000_000, "does not list 1 to"),
    "a system prompt that is no text": (
        lambda o: [o.model(), o.layer("system", b"\xff")],
        "not a readable text",
    ),
    "parameters that are no object": (lambda o: [o.model(), o.layer("params", "[]")], "not a JSON object"),
    "parameters that are no JSON": (lambda o: [o.model(), o.layer("params", "{")], "are not JSON"),
    "deep parameters": (lambda o: [o.model(), o.layer("params", "[" * 100_000)], "are not JSON"),
    "messages that are none": (lambda o: [o.model(), o.layer("messages", "[1]")], "not a JSON array"),
}


@pytest.mark.parametrize(("layers", "reason"), SKIPPED.values(), ids=SKIPPED.keys())
def test_what_can_not_be_used_is_skipped_with_a_reason_and_the_others_are_not(layers, reason, ollama):
    ollama.manifest("registry.ollama.ai/library/bad/latest", *layers(ollama))
    ollama.manifest("registry.ollama.ai/library/good/latest", ollama.model())
    bad, good = ollama.found()
    assert isinstance(bad, Skipped)
    assert reason in bad.reason
    assert str(good.record.name) == "good:latest"


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"nonsense", b"[" * 100_000, b'{"layers": {}}', b" " * (5 << 20), b"\xff"]
)
def test_a_manifest_that_is_none_is_skipped(content, ollama):
    ollama.manifest("registry.ollama.ai/library/a/latest").write_bytes(content)
    assert isinstance(ollama.found()[0], Skipped)


def test_a_manifest_that_is_a_link_or_a_pipe_is_skipped_without_blocking(ollama, tmp_path):
    import os

    path = ollama.manifest("registry.ollama.ai/library/a/latest", ollama.model())
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    os.mkfifo(path.with_name("pipe"))
    assert [type(found) for found in ollama.found()] == [Skipped, Skipped]


def test_names_that_are_none_of_ours_are_skipped(ollama):
    ollama.manifest("registry.ollama.ai/library/-x/latest", ollama.model())
    ollama.manifest("registry.ollama.ai/library/con/latest", ollama.model())
    assert all("is not a model name" in found.reason for found in ollama.found())


def test_hundreds_of_mangled_manifests_do_no_harm(ollama):
    """Byte flips in a good manifest: either a whole model comes out, or a reason."""
    path = ollama.manifest(
        "registry.ollama.ai/library/a/latest", ollama.model(), ollama.layer("params", '{"top_k": 5}')
    )
    good, chooser = path.read_bytes(), random.Random(2)
    outcomes = set()
    for _ in range(500):
        data = bytearray(good)
        for _ in range(chooser.randint(1, 4)):
            data[chooser.randrange(len(data))] = chooser.randrange(256)
        path.write_bytes(data)
        [found] = ollama.found()
        outcomes.add(type(found))
        if isinstance(found, Imported):
            assert is_complete(found.record)
            assert found.record.path.parent == ollama.root / "blobs"
    assert outcomes == {Imported, Skipped}


def test_a_folder_that_is_not_ollamas_is_one_sentence(tmp_path):
    with pytest.raises(UsageError, match="--from DIR or OLLAMA_MODELS"):
        list(ollama_models(tmp_path))


def test_ollamas_own_variable_names_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path))
    assert default_folder() == tmp_path
    monkeypatch.delenv("OLLAMA_MODELS")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ollama/models").mkdir(parents=True)
    assert default_folder() == tmp_path / ".ollama/models"
