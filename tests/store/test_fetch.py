"""The fetcher and the store against a hub that misbehaves in one way per test."""

import pytest

from nanollama.errors import DownloadError
from nanollama.store.fetch import FetchSettings
from nanollama.store.names import ModelName

TOY = ModelName.parse("toy:1b")


def leftovers(store):
    folder = store.root / "library/toy/1b"
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def test_a_good_hub_gives_the_file_and_nothing_else_is_left(hub, make_store, recorder):
    store = make_store()
    model = store.pull(TOY, recorder)
    assert model.path.read_bytes() == hub.content
    assert leftovers(store) == ["toy.gguf"]
    assert hub.requests[0][0] == "/org/toy/resolve/abc/toy.gguf"
    assert recorder.begun == [("downloading toy:1b", len(hub.content), 0)]
    assert recorder.updates[-1] == len(hub.content)
    assert recorder.ended == 1


RECOVERABLE = {
    "the body is shorter than its length": ["half"],
    "the body has no length and is short": ["unmeasured"],
    "the connection is reset half-way": ["reset"],
    "the connection breaks in every quarter": ["half", "half", "half", "reset", "half"],
    "the range is ignored after a break": ["half", "ignore-range"],
    "the hub is busy (429) at first": ["status 429"],
    "the hub is down (503) three times": ["status 503", "status 503", "status 503"],
    "the hub is busy after a break": ["reset", "status 503", "half", "status 429"],
}


@pytest.mark.parametrize("script", RECOVERABLE.values(), ids=RECOVERABLE.keys())
def test_a_transfer_that_breaks_off_is_finished(script, hub, make_store):
    hub.script = list(script)
    store = make_store()
    assert store.pull(TOY).path.read_bytes() == hub.content
    assert leftovers(store) == ["toy.gguf"]
    assert hub.script == []


def test_a_transfer_goes_on_where_it_broke_off(hub, make_store):
    hub.script = ["half"]
    make_store().pull(TOY)
    assert hub.ranges == [None, f"bytes={len(hub.content) // 2}-"]


def test_where_the_range_is_ignored_the_whole_answer_is_taken_from_its_beginning(hub, make_store, recorder):
    hub.script = ["half", "ignore-range"]
    assert make_store().pull(TOY, recorder).path.read_bytes() == hub.content
    assert len(hub.requests) == 2
    assert [done for _, _, done in recorder.begun] == [0, 0]


def test_a_pull_goes_on_with_what_an_earlier_one_left(hub, make_store, recorder):
    hub.script = ["half", *["status 503"] * 4]
    store = make_store()
    with pytest.raises(DownloadError):
        store.pull(TOY)
    assert leftovers(store) == ["toy.gguf.part"]
    assert store.find(TOY) is None
    assert store.pull(TOY, recorder).path.read_bytes() == hub.content
    half = len(hub.content) // 2
    assert hub.ranges[-1] == f"bytes={half}-"
    assert recorder.begun == [("downloading toy:1b", len(hub.content), half)]


FATAL = {
    "wrong content of the right size": (["wrong"], "does not have the expected sha256"),
    "more bytes than expected": (["long"], "more than the expected 1000000 bytes"),
    "fewer bytes than expected, each time": (["less"] * 9, "shorter than expected|only 999999 of 1000000"),
    "the wrong part of the file": (["half", "shifted"], "another part of the file"),
    "a compressed body": (["gzip"], "compressed"),
    "no such file": (["status 404"], "HTTP 404"),
    "no permission": (["status 401"], "HTTP 401; a token in HF_TOKEN may be needed"),
    "always busy": (["status 429"] * 9, r"busy \(HTTP 429\)"),
    "a redirect to a file": (["redirect file:///etc/passwd"], "not encrypted"),
    "a redirect without an address": (["redirect "] * 9, "redirects more than 5 times"),
    "a redirect without end": (["redirect /again"] * 9, "redirects more than 5 times"),
}


@pytest.mark.parametrize(("script", "reason"), FATAL.values(), ids=FATAL.keys())
def test_a_hub_that_can_not_be_used_is_one_sentence_and_no_model(script, reason, hub, make_store):
    hub.script = list(script)
    store = make_store()
    with pytest.raises(DownloadError, match=reason) as caught:
        store.pull(TOY)
    assert "Hugging Face: " in str(caught.value)
    assert "repeat the command, or put the file with sha256" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "127.0.0.1" not in str(caught.value)
    assert store.find(TOY) is None
    assert store.list() == []
    assert set(leftovers(store)) <= {"toy.gguf.part"}


def test_wrong_content_leaves_nothing_to_go_on_with(hub, make_store):
    hub.script = ["wrong"]
    store = make_store()
    with pytest.raises(DownloadError):
        store.pull(TOY)
    assert leftovers(store) == []


def test_a_beginning_that_does_not_fit_is_thrown_away_once(hub, make_store, recorder):
    store = make_store()
    part = store.root / "library/toy/1b/toy.gguf.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(bytes(1000))
    assert store.pull(TOY, recorder).path.read_bytes() == hub.content
    assert hub.ranges == ["bytes=1000-", None]
    assert "what an earlier attempt left does not fit; starting again" in recorder.notices


@pytest.mark.parametrize("size", [1_000_000, 1_000_001, 5_000_000])
def test_a_part_file_that_is_whole_but_wrong_or_too_long_is_replaced(size, hub, make_store):
    store = make_store()
    part = store.root / "library/toy/1b/toy.gguf.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(bytes(size))
    assert store.pull(TOY).path.read_bytes() == hub.content
    assert leftovers(store) == ["toy.gguf"]


def test_a_redirect_to_another_host_does_not_get_the_token(hub, other_hub, make_store):
    elsewhere = f"http://localhost:{other_hub.port}/blob"
    hub.script = ["redirect /moved", f"redirect {elsewhere}"]
    make_store(token="secret").pull(TOY)
    assert [headers.get("authorization") for _, headers in hub.requests] == ["Bearer secret"] * 2
    assert [headers.get("authorization") for _, headers in other_hub.requests] == [None]


def test_a_redirect_to_another_port_does_not_get_the_token(hub, other_hub, make_store):
    hub.script = [f"redirect {other_hub.url}/blob"]
    make_store(token="secret").pull(TOY)
    assert "authorization" not in other_hub.requests[0][1]


def test_after_a_redirect_a_range_is_asked_for_again(hub, other_hub, make_store):
    hub.script = [f"redirect {other_hub.url}/blob"] * 2
    other_hub.script = ["half"]
    make_store().pull(TOY)
    assert other_hub.ranges == [None, "bytes=500000-"]


# A proxy stands for the outside world: a public name that is answered by the local hub.


@pytest.mark.parametrize("inside", ["127.0.0.1", "localhost", "169.254.169.254", "10.1.2.3", "[::1]"])
def test_a_public_hub_can_not_redirect_into_the_local_network(inside, hub, make_store, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", hub.url)
    hub.script = [f"redirect http://{inside}:{hub.port}/secret"]
    with pytest.raises(DownloadError, match="redirects to an address inside the local network"):
        make_store(endpoint="http://hub.example.org").pull(TOY)
    assert len(hub.requests) == 1


def test_the_token_is_not_sent_unencrypted_to_a_public_hub(hub, make_store, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", hub.url)
    make_store(endpoint="http://hub.example.org", token="secret").pull(TOY)
    assert "authorization" not in hub.requests[0][1]


def test_an_unusable_proxy_setting_is_one_sentence(make_store, monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "gopher://x")
    with pytest.raises(DownloadError, match="proxy or certificate settings"):
        make_store().pull(TOY)


@pytest.mark.parametrize(
    "endpoint", ["http://127.0.0.1:9", "http://", "nonsense", "http://host:port", "http://a b/"]
)
def test_an_address_where_nothing_answers_is_one_sentence(endpoint, make_store):
    with pytest.raises(DownloadError, match=r"could not be reached|not a valid URL"):
        make_store(endpoint=endpoint).pull(TOY)


def test_a_hub_that_does_not_answer_in_time_is_given_up(hub, make_store):
    hub.script = ["wait"]
    with pytest.raises(DownloadError, match=r"did not answer within 0\.2 seconds"):
        make_store(first_answer_s=0.2).pull(TOY)


def test_a_transfer_that_stalls_is_picked_up(hub, make_store):
    hub.script = ["stall"]
    model = make_store(read_s=0.2).pull(TOY)
    assert model.path.read_bytes() == hub.content
    assert hub.ranges == [None, "bytes=500000-"]


def test_the_offline_switch_asks_the_hub_for_nothing(hub, make_store):
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE is set"):
        make_store(hub_offline=True).pull(TOY)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, FetchSettings()),
        (
            {"HF_ENDPOINT": "http://mirror/", "HF_TOKEN": "t"},
            FetchSettings(endpoint="http://mirror", token="t"),
        ),
        ({"HF_ENDPOINT": "", "HF_TOKEN": "", "HF_HUB_OFFLINE": ""}, FetchSettings()),
        ({"HF_HUB_OFFLINE": "1"}, FetchSettings(hub_offline=True)),
        ({"HF_HUB_OFFLINE": "TRUE"}, FetchSettings(hub_offline=True)),
        ({"HF_HUB_OFFLINE": "0"}, FetchSettings()),
    ],
)
def test_settings_come_from_the_variables_of_the_hugging_face_clients(environment, expected):
    assert FetchSettings.from_environment(environment) == expected
