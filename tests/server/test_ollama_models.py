"""Models are made, copied, removed, uploaded and pulled over HTTP, in a real store and from a real server."""

import hashlib
import json
import threading

import numpy as np
import ollama
import pytest

from hub_server import LocalHub
from nanollama.formats.gguf_values import Typed, ValueType
from nanollama.formats.gguf_write import write_gguf
from nanollama.quant.formats import FORMATS
from nanollama.server.settings import ServerSettings
from nanollama.server.source import StoreSource
from nanollama.store.catalogue import Entry, HubFile
from nanollama.store.fetch import Fetcher, FetchSettings
from nanollama.store.names import Digest, ModelName
from nanollama.store.plans import ANY
from nanollama.store.store import Store
from server.scripted import ScriptedLLM
from server.worlds import LiveServer

METADATA = {
    "general.architecture": "llama",
    "general.basename": "toy",
    "general.tags": ["a", "b"],
    "llama.context_length": 512,
    "llama.embedding_length": 32,
    "general.file_type": Typed(ValueType.UINT32, 15),
    "tokenizer.chat_template": "{{ messages[0].content }}",
    "tokenizer.ggml.tokens": [f"t{n}" for n in range(100)],
}


class LoadedFromStore(StoreSource):
    """The models of a store, with scripted ones in place of what is in the files."""

    def __init__(self, store):
        super().__init__(store=store)
        self.models = {}
        self.hold = threading.Event()

    def load(self, found, n_ctx=None):
        self.models[found.id] = ScriptedLLM(found.id)
        return self.models[found.id]


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A small model file and its digest."""
    path = tmp_path_factory.mktemp("toy") / "toy.gguf"
    data = np.zeros((8, 32), dtype=np.float32).tobytes()
    write_gguf(path, METADATA, [("blk.0.attn_q.weight", (8, 32), FORMATS["F32"], data)])
    return path, "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def hub(toy):
    hub = LocalHub()
    hub.content = toy[0].read_bytes()
    yield hub
    hub.close()


@pytest.fixture
def live(tmp_path, toy, hub):
    path, digest = toy
    entry = Entry(
        name=ModelName.parse("toy:1b"),
        file="toy.gguf",
        size=path.stat().st_size,
        digest=Digest(digest),
        licence="MIT",
        sources=(HubFile("org/toy", "abc", "toy.gguf"),),
    )
    store = Store(tmp_path / "models", Fetcher(FetchSettings(endpoint=hub.url)), (entry,), backoff_s=0)
    source = LoadedFromStore(store)
    with LiveServer(ServerSettings(port=0), source=source, store=store) as server:
        yield server


@pytest.fixture
def client(live):
    with live.ollama() as client:
        yield client


def names(client):
    return sorted(model.model for model in client.list().models)


def files(folder):
    return sorted(path.name for path in folder.rglob("*.gguf"))


def test_a_pull_says_how_far_it_is_and_ends_in_success(client, toy):
    parts = list(client.pull("toy:1b", stream=True))
    assert parts[0].status == "pulling manifest"
    assert [part.status for part in parts[-3:]] == ["verifying sha256 digest", "writing manifest", "success"]
    moving = [part for part in parts if part.digest]
    assert {part.status for part in moving} == {f"pulling {part.digest[7:19]}" for part in moving}
    assert moving[-1].completed == moving[-1].total == toy[0].stat().st_size
    assert client.pull("toy:1b").status == "success"
    assert names(client) == ["toy:1b"]


def test_a_pulled_model_is_described(client, toy):
    client.pull("toy:1b")
    (model,) = client.list().models
    assert model.digest == toy[1].removeprefix("sha256:")
    assert (model.details.family, model.details.quantization_level) == ("llama", "Q4_K_M")
    assert model.details.parameter_size == "256"
    shown = client.show("toy:1b")
    assert shown.modelinfo["general.architecture"] == "llama"
    assert shown.modelinfo["general.basename"] == "toy"
    assert shown.modelinfo["llama.context_length"] == 512
    assert shown.modelinfo["tokenizer.ggml.tokens"] == [], "long lists only for those who ask for them"
    assert shown.modelinfo["general.tags"] == ["a", "b"]
    assert shown.template == METADATA["tokenizer.chat_template"]
    assert shown.license == "MIT"


def test_the_newest_model_is_listed_first(client):
    client.pull("toy:1b")
    client.create("newer", from_="toy:1b")
    assert [model.model for model in client.list().models] == ["newer:latest", "toy:1b"]


@pytest.mark.parametrize("target", ["none", "https://evil.example/model.gguf", "http://127.0.0.1:1/x.gguf"])
def test_only_the_catalogue_and_the_hub_are_pulled_from(live, client, hub, target):
    with pytest.raises(ollama.ResponseError) as refused:
        list(client.pull(target, stream=True))
    assert "/" + "tmp" not in refused.value.error
    with pytest.raises(ollama.ResponseError) as refused:
        client.pull(target)
    assert refused.value.status_code in (400, 404, 502)
    assert not hub.requests
    assert not files(live.store.root)


def test_the_path_of_a_file_is_nothing_to_pull(client, toy, live):
    with pytest.raises(ollama.ResponseError):
        client.pull(str(toy[0]))
    with pytest.raises(ollama.ResponseError, match="invalid model name"):
        client.create("mine", from_=str(toy[0]))
    assert names(client) == []


def test_a_pull_that_fails_is_told_and_leaves_no_model(client, hub):
    hub.script = ["status 404"] * 20
    with pytest.raises(ollama.ResponseError):
        list(client.pull("toy:1b", stream=True))
    assert names(client) == []


def test_a_model_is_made_from_another_one_and_shares_its_file(live, client):
    client.pull("toy:1b")
    parts = client.create(
        "mario",
        from_="toy:1b",
        system="You are Mario.",
        parameters={"temperature": 0.1, "stop": ["<|end|>", "Luigi"]},
        messages=[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "It's-a me!"}],
        license=["CC0"],
        stream=True,
    )
    assert [part.status for part in parts][-1] == "success"
    assert names(client) == ["mario:latest", "toy:1b"]
    shown = client.show("mario")
    assert "SYSTEM You are Mario." in shown.modelfile
    assert shown.parameters.splitlines()[0].split() == ["temperature", "0.1"]
    assert shown.details.parent_model == "toy:1b"
    assert shown.license == "MIT\nCC0"
    assert files(live.store.root) == ["toy.gguf"]
    digests = {model.digest for model in client.list().models}
    assert len(digests) == 2, "models that answer differently have different ids"


def test_a_copy_is_the_same_model_and_stays_when_the_first_name_goes(live, client):
    client.pull("toy:1b")
    assert client.copy("toy:1b", "second").status == "success"
    assert len({model.digest for model in client.list().models}) == 1
    assert client.delete("toy:1b").status == "success"
    assert names(client) == ["second:latest"]
    assert files(live.store.root) == ["toy.gguf"]
    client.delete("second")
    assert files(live.store.root) == []


def test_a_removed_model_leaves_memory_and_is_gone(live, client):
    client.pull("toy:1b")
    client.generate("toy:1b", "tokens=1")
    client.delete("toy:1b")
    assert client.ps().models == []
    with pytest.raises(ollama.ResponseError, match="model 'toy:1b' not found"):
        client.generate("toy:1b", "tokens=1")


def test_a_file_is_uploaded_once_and_becomes_a_model(live, client, toy):
    path, digest = toy
    assert client._client.head(f"/api/blobs/{digest}").status_code == 404
    assert client.create_blob(path) == digest
    assert client._client.head(f"/api/blobs/{digest}").status_code == 200
    assert client.create("mine", files={"toy.gguf": digest}).status == "success"
    assert names(client) == ["mine:latest"]
    assert client._client.head(f"/api/blobs/{digest}").status_code == 200, "it belongs to a model now"
    assert client.create("twin", files={"../../x.gguf": digest}).status == "success"
    assert files(live.store.root) == ["toy.gguf"]
    client.delete("mine")
    client.delete("twin")
    assert files(live.store.root) == []


def test_an_upload_of_something_else_leaves_nothing(live, client):
    wrong = "sha256:" + "0" * 64
    reply = client._client.post(f"/api/blobs/{wrong}", content=b"hello")
    assert reply.status_code == 400
    assert "digest mismatch" in reply.json()["error"]
    assert not [path for path in live.store.root.rglob("*") if path.is_file()]


def test_an_upload_that_is_no_model_is_refused_when_one_is_to_be_made_of_it(live, client):
    digest = "sha256:" + hashlib.sha256(b"hello").hexdigest()
    assert client._client.post(f"/api/blobs/{digest}", content=b"hello").status_code == 201
    assert client._client.post(f"/api/blobs/{digest}", content=b"hello").status_code == 200
    with pytest.raises(ollama.ResponseError) as refused:
        client.create("mine", files={"mine.gguf": digest})
    assert str(live.store.root) not in refused.value.error
    assert names(client) == []
    assert not (live.store.root / "library").exists(), "it left no folder either"


def test_an_upload_may_be_larger_than_a_request(live, client):
    data = bytes(17 << 20)
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    assert client._client.post(f"/api/blobs/{digest}", content=data).status_code == 201


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"model": "x"}, "neither 'from' or 'files' was specified"),
        ({"model": "x", "from": "none"}, "there is no model 'none'"),
        ({"model": "../x", "from": "toy:1b"}, "invalid model name"),
        ({"model": "x", "from": "toy:1b", "parameters": {"temprature": 1}}, "did you mean temperature?"),
        ({"model": "x", "from": "toy:1b", "parameters": {"temperature": "hot"}}, "temperature is 'hot'"),
        ({"model": "x", "from": "toy:1b", "template": "{% if %}"}, "template"),
        ({"model": "x", "from": "toy:1b", "adapters": {"a": "b"}}, "adapters can't be applied"),
        ({"model": "x", "from": "toy:1b", "quantize": "q9"}, "no type to quantize to"),
        ({"model": "x", "files": {"a.gguf": "sha256:1"}}, "is not a digest"),
        ({"model": "x", "files": {"a.gguf": "sha256:" + "0" * 64}}, "no file with the digest"),
        ({"model": "x", "files": {"a.safetensors": "sha256:" + "0" * 64}}, "one uploaded .gguf file"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_what_cannot_be_made_is_refused_and_makes_nothing(client, body, message, stream):
    client.pull("toy:1b")
    reply = client._client.post("/api/create", json={**body, "stream": stream})
    last = json.loads(reply.text.splitlines()[-1])
    assert message in last["error"]
    assert stream or 400 <= reply.status_code < 500
    assert names(client) == ["toy:1b"]


def test_the_operator_may_allow_more_hosts(tmp_path, hub):
    store = Store(tmp_path / "models", Fetcher(FetchSettings(endpoint=hub.url)), (), backoff_s=0)
    source = LoadedFromStore(store)
    with LiveServer(source=source, store=store, hosts=ANY) as live, live.ollama() as client:
        assert client.pull(f"{hub.url}/some/toy.gguf").status == "success"
        assert len(names(client)) == 1


def test_a_pull_ends_when_its_client_goes_and_goes_on_with_the_next_one(live, client, hub):
    hub.pace_s = 0.05
    parts = client.pull("toy:1b", stream=True)
    next(parts)
    parts.close()
    hub.pace_s = 0.0
    assert client.pull("toy:1b").status == "success"
    assert names(client) == ["toy:1b"]
