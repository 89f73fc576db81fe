"""Targets as users, tools and attackers spell them, and the plans that come of them."""

import pytest

from hub_server import COMMIT, CONTENT
from nanollama.errors import DownloadError, ModelNotFoundError, NanollamaError, UsageError
from nanollama.store.catalogue import CATALOGUE, PINNED, HubFile, HubRepo, UrlFile
from nanollama.store.fetch import Fetcher, FetchSettings
from nanollama.store.plans import ANY, HUB_ONLY, Hosts, HubTarget, UrlTarget, parse_target, plan_for

GGUF = b"GGUF" + bytes(1000)


@pytest.fixture
def fetcher(hub):
    return Fetcher(FetchSettings(endpoint=hub.url))


@pytest.fixture
def offline(hub):
    return Fetcher(FetchSettings(endpoint=hub.url, hub_offline=True))


# Reading a target


@pytest.mark.parametrize(
    ("target", "name", "repo", "file"),
    [
        ("hf.co/Org/Toy-GGUF", "hf.co/org/toy-gguf:latest", HubRepo("Org/Toy-GGUF", None), None),
        ("hf.co/Org/Toy-GGUF:latest", "hf.co/org/toy-gguf:latest", HubRepo("Org/Toy-GGUF", None), None),
        ("hf.co/org/toy:Q8_0", "hf.co/org/toy:q8_0", HubRepo("org/toy", "Q8_0"), None),
        ("huggingface.co/org/toy:q8_0", "hf.co/org/toy:q8_0", HubRepo("org/toy", "q8_0"), None),
        ("HF.CO/org/toy", "hf.co/org/toy:latest", HubRepo("org/toy", None), None),
        ("https://huggingface.co/org/toy", "hf.co/org/toy:latest", HubRepo("org/toy", None), None),
        ("https://hf.co/org/toy:Q2_K", "hf.co/org/toy:q2_k", HubRepo("org/toy", "Q2_K"), None),
        (
            "https://huggingface.co/org/toy/resolve/main/sub/Toy-Q4_K_M.gguf?download=true",
            "hf.co/org/toy:toy-q4_k_m",
            HubRepo("org/toy", None, "main"),
            "sub/Toy-Q4_K_M.gguf",
        ),
        (
            "https://huggingface.co/org/toy/blob/v1.0/toy.gguf",
            "hf.co/org/toy:toy",
            HubRepo("org/toy", None, "v1.0"),
            "toy.gguf",
        ),
    ],
)
def test_a_repository_can_be_named_in_several_ways(target, name, repo, file):
    parsed = parse_target(target)
    assert isinstance(parsed, HubTarget)
    assert (str(parsed.name), parsed.repo, parsed.file) == (name, repo, file)
    assert parse_target(target, hosts=HUB_ONLY) == parsed


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://example.org/models/My_Model-Q4_K_M.gguf", "example.org/models/my_model:q4_k_m"),
        ("https://example.org/toy.gguf", "example.org/files/toy:latest"),
        ("https://example.org:8443/a/b%20c/toy%20one.gguf?x=1", "example.org:8443/b-c/toy-one:latest"),
        ("https://example.org/../../etc/x.gguf", "example.org/etc/x:latest"),
        ("https://example.org/%2e%2e/..gguf..gguf", "example.org/file/gguf:latest"),
        ("http://localhost:8000/toy.gguf", "localhost:8000/files/toy:latest"),
        ("http://192.168.1.5/m/toy.GGUF", "192.168.1.5/m/toy:latest"),
    ],
)
def test_the_address_of_a_file_gives_it_a_name(url, name):
    parsed = parse_target(url)
    assert isinstance(parsed, UrlTarget)
    assert (str(parsed.name), parsed.url) == (name, url)


@pytest.mark.parametrize("entry", CATALOGUE, ids=lambda entry: str(entry.name))
def test_every_name_of_the_catalogue_is_a_target_for_anybody(entry):
    assert parse_target(str(entry.name), hosts=HUB_ONLY) is entry


NO_TARGETS = [
    "",
    "a b",
    "../../etc/passwd",
    "hf.co/",
    "hf.co/org",
    "hf.co/org/toy/more",
    "hf.co/../toy",
    "hf.co/org/..",
    "hf.co/org/to..y",
    "hf.co/org/toy:a/b",
    "hf.co/org/toy:../../x",
    "hf.co/org/toy:",
    "hf.co/org%2f..%2f/x",
    "hf.co//toy",
    "hf.co/org/toy\0",
    "hf.co/org/toy\n",
    "hf.co/örg/toy",
    "hf.co/con/toy",
    "x" * 5000,
    "file:///etc/passwd",
    "ftp://example.org/x.gguf",
    "https://",
    "https:///x.gguf",
    "https://[::1/x.gguf",
    "https://example.org:99999/x.gguf",
    "https://user:secret@example.org/x.gguf",
    "https://token@huggingface.co/org/toy",
    "https://example.org/x.bin",
    "https://example.org/x.gguf/",
    "https://example.org/.gguf/..",
    "http://example.org/x.gguf",
    "https://huggingface.co/org",
    "https://huggingface.co/org/toy/resolve/main/x.safetensors",
    "https://huggingface.co/org/toy/tree/main/x.gguf",
    "https://huggingface.co/org/toy/resolve/../x.gguf",
]


@pytest.mark.parametrize("target", NO_TARGETS)
def test_what_is_no_target_is_refused_without_asking_anybody(target, hub, fetcher):
    with pytest.raises((UsageError, ModelNotFoundError)) as caught:
        plan_for(target, fetcher)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)
    assert (hub.requests, hub.questions) == ([], [])


FORBIDDEN = [
    "http://169.254.169.254/latest/x.gguf",
    "http://localhost:22/x.gguf",
    "http://127.0.0.1:11434/x.gguf",
    "http://[::1]/x.gguf",
    "http://0x7f000001/x.gguf",
    "https://example.org/x.gguf",
    "https://huggingface.co.example.org/org/x.gguf",
    "https://huggingface.co@example.org/x.gguf",
    "https://example.org\\@huggingface.co/x.gguf",
    "localhost:22/me/toy",
    "127.0.0.1:80/me/toy",
    "example.org/me/toy",
]


@pytest.mark.parametrize("target", FORBIDDEN)
def test_a_caller_who_may_use_the_hub_only_reaches_nothing_else(target, hub, fetcher):
    with pytest.raises((UsageError, ModelNotFoundError)):
        plan_for(target, fetcher, hosts=HUB_ONLY)
    assert (hub.requests, hub.questions) == ([], [])


def test_an_operator_can_allow_a_host_by_name():
    hosts = Hosts(names=frozenset({"models.example.org"}))
    assert parse_target("https://models.example.org/x.gguf", hosts=hosts)
    for other in ("https://example.org/x.gguf", "https://evil-models.example.org/x.gguf"):
        with pytest.raises(UsageError, match="is not a place to pull from here"):
            parse_target(other, hosts=hosts)
    assert ANY.allows("example.org")


def test_an_unknown_name_gets_suggestions(fetcher):
    with pytest.raises(ModelNotFoundError, match=r"did you mean .*qwen3:4b"):
        plan_for("qwen3:4", fetcher)


# Making a plan


def test_a_pinned_entry_is_planned_without_the_network(hub, offline):
    plan = plan_for("smollm2", offline)
    entry = PINNED[0]
    assert (plan.name, plan.format, plan.licence) == (entry.name, "gguf", "Apache-2.0")
    assert (plan.source, plan.sampling) == ("catalogue", {"temperature": 0.0})
    (file,) = plan.files
    assert (file.path, file.size, file.digest) == (entry.file, entry.size, entry.digest)
    assert file.sources == entry.sources
    assert hub.questions == []


def test_another_entry_is_looked_up_and_pinned_to_what_the_hub_states(hub, fetcher):
    repo = "Qwen/Qwen2.5-0.5B-Instruct-GGUF"
    file = "qwen2.5-0.5b-instruct-q4_k_m.gguf"
    hub.publish(repo, {file: GGUF, "qwen2.5-0.5b-instruct-q8_0.gguf": GGUF * 2})
    plan = plan_for("qwen2.5:0.5b", fetcher)
    assert [(f.path, f.size, f.sources) for f in plan.files] == [
        (file, len(GGUF), (HubFile(repo, COMMIT, file),))
    ]
    assert plan.files[0].digest
    assert (str(plan.name), plan.licence) == ("qwen2.5:0.5b", "Apache-2.0")
    assert plan.source == f"hf.co/{repo}@{COMMIT}"


def test_a_repository_of_gguf_files_gives_the_one_that_was_meant(hub, fetcher):
    hub.publish("org/Toy", {"sub/Toy-Q4_K_M.gguf": GGUF, "Toy-Q8_0.gguf": GGUF, "config.json": b"{}"})
    assert [file.path for file in plan_for("hf.co/org/Toy", fetcher).files] == ["Toy-Q4_K_M.gguf"]
    assert [file.path for file in plan_for("hf.co/org/Toy:q8_0", fetcher).files] == ["Toy-Q8_0.gguf"]
    one = plan_for("https://huggingface.co/org/Toy/blob/main/sub/Toy-Q4_K_M.gguf", fetcher)
    assert one.files[0].sources == (HubFile("org/Toy", COMMIT, "sub/Toy-Q4_K_M.gguf"),)
    assert plan_for("hf.co/org/Toy", fetcher).licence == "mit"


def test_a_repository_of_safetensors_gives_a_folder(hub, fetcher):
    hub.publish("org/toy", {"config.json": b"{}", "model.safetensors": GGUF, "modeling.py": b""})
    plan = plan_for("hf.co/org/toy", fetcher)
    assert plan.format == "safetensors"
    assert [file.path for file in plan.files] == ["config.json", "model.safetensors"]
    assert [file.digest is None for file in plan.files] == [True, False]


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("hf.co/org/toy:Q5_K_M", "no GGUF file, so there is no Q5_K_M"),
        ("https://huggingface.co/org/toy/resolve/main/x.gguf", "the repository has no such file"),
        ("hf.co/org/evil", "unsafe name"),
    ],
)
def test_a_repository_that_can_not_be_used_is_one_sentence(target, reason, hub, fetcher):
    hub.publish("org/toy", {"config.json": b"{}", "model.safetensors": GGUF})
    hub.publish("org/evil", {"../../x-Q4_K_M.gguf": GGUF})
    with pytest.raises(DownloadError, match=f"could not be looked up .*Hugging Face: .*{reason}"):
        plan_for(target, fetcher)


def test_a_repository_that_is_not_there_is_a_missing_model(fetcher):
    with pytest.raises(ModelNotFoundError, match=r"hf\.co/org/gone:latest is not there"):
        plan_for("hf.co/org/gone", fetcher)


def test_a_repository_that_needs_a_token_says_so(hub, fetcher):
    hub.api_script = ["status 401"]
    with pytest.raises(ModelNotFoundError, match="a token in HF_TOKEN may be needed"):
        plan_for("hf.co/org/gated", fetcher)


def test_without_the_hub_a_repository_can_not_be_planned(offline):
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE is set"):
        plan_for("hf.co/org/toy", offline)


def test_a_file_at_an_address_is_planned_by_its_first_bytes(hub, fetcher):
    hub.files["toy.gguf"] = GGUF
    hub.etag = '"v1"'
    url = f"{hub.url}/models/toy.gguf"
    plan = plan_for(url, fetcher)
    (file,) = plan.files
    assert (file.path, file.size, file.digest, file.sources) == (
        "toy.gguf",
        len(GGUF),
        None,
        (UrlFile(url, '"v1"'),),
    )
    assert (plan.format, plan.source) == ("gguf", url)
    assert hub.ranges == ["bytes=0-3"]


def test_a_weak_etag_pins_nothing(hub, fetcher):
    hub.files["toy.gguf"] = GGUF
    hub.etag = 'W/"v1"'
    assert plan_for(f"{hub.url}/toy.gguf", fetcher).files[0].sources[0].etag is None


@pytest.mark.parametrize(
    ("step", "content", "reason"),
    [
        ("serve", CONTENT, "does not begin like a GGUF file"),
        ("serve", b"GG", "does not begin like a GGUF file"),
        ("endless", GGUF, "does not say how large the file is"),
        ("status 500", GGUF, "busy"),
        ("redirect https://127.0.0.1:1/x", GGUF, "could not be reached"),
    ],
)
def test_an_address_without_a_model_is_one_sentence(step, content, reason, hub, fetcher):
    hub.files["toy.gguf"] = content
    hub.script = [step]
    with pytest.raises(NanollamaError, match=reason):
        plan_for(f"{hub.url}/toy.gguf", fetcher)
