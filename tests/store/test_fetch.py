"""One file fetched from a hub that misbehaves in one way per test."""

import pytest

from nanollama.errors import DownloadError
from nanollama.store.fetch import FetchSettings


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "model"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


UNFINISHED = ["toy.gguf.part", "toy.gguf.part.map"]


def test_a_good_hub_gives_the_file_and_nothing_else_is_left(hub, fetch, folder, recorder):
    assert fetch(recorder).read_bytes() == hub.content
    assert names(folder) == ["toy.gguf"]
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
    "the connection is closed before an answer": ["drop", "half", "drop"],
    "the hub is busy after a break": ["reset", "status 503", "half", "status 429"],
}


@pytest.mark.parametrize("script", RECOVERABLE.values(), ids=RECOVERABLE.keys())
def test_a_transfer_that_breaks_off_is_finished(script, hub, fetch, folder):
    hub.script = list(script)
    assert fetch().read_bytes() == hub.content
    assert names(folder) == ["toy.gguf"]
    assert hub.script == []


def test_a_transfer_goes_on_where_it_broke_off(hub, fetch):
    hub.script = ["half"]
    fetch()
    assert hub.ranges == [None, f"bytes={len(hub.content) // 2}-"]


def test_where_the_range_is_ignored_the_file_is_fetched_from_its_beginning(hub, fetch, recorder):
    hub.script = ["half", "ignore-range"]
    assert fetch(recorder).read_bytes() == hub.content
    assert hub.ranges == [None, "bytes=500000-", None]
    assert "the server sends only whole files; starting again" in recorder.notices
    assert [done for _, _, done in recorder.begun] == [0, 0]


def test_a_pull_goes_on_with_what_an_earlier_one_left(hub, fetch, folder, recorder):
    hub.script = ["half", *["status 503"] * 6]
    with pytest.raises(DownloadError):
        fetch()
    assert names(folder) == UNFINISHED
    assert fetch(recorder).read_bytes() == hub.content
    half = len(hub.content) // 2
    assert hub.ranges[-1] == f"bytes={half}-"
    assert recorder.begun == [("downloading toy:1b", len(hub.content), half)]


FATAL = {
    "wrong content of the right size": (["wrong"], "does not have the expected sha256"),
    "more bytes than expected": (["long"], "the file there has 1000004 bytes instead of 1000000"),
    "a body without a length and without an end": (["endless"], "more than the expected 1000000 bytes"),
    "fewer bytes than expected": (["less"], "the file there has 999999 bytes instead of 1000000"),
    "the wrong part of the file": (["half", "shifted"], "another part of the file"),
    "a compressed body": (["gzip"], "compressed"),
    "no such file": (["status 404"], "HTTP 404"),
    "no permission": (["status 401"], "HTTP 401; a token in HF_TOKEN may be needed"),
    "always busy": (["status 429"] * 9, r"busy \(HTTP 429\)"),
    "busy for an hour": (["status 429 3600"], r"busy \(HTTP 429\), and asks to come back in 3,600 seconds"),
    "busy until a date": (["status 503 Fri, 01 Jan 2100 00:00:00 GMT"], r"HTTP 503\), and asks to come back"),
    "a redirect to a file": (["redirect file:///etc/passwd"], "not encrypted"),
    "a redirect without an address": (["redirect "] * 9, "redirects more than 5 times"),
    "a redirect without end": (["redirect /again"] * 9, "redirects more than 5 times"),
}


@pytest.mark.parametrize(("script", "reason"), FATAL.values(), ids=FATAL.keys())
def test_a_hub_that_can_not_be_used_is_one_sentence_and_no_model(script, reason, hub, fetch, folder):
    hub.script = list(script)
    with pytest.raises(DownloadError, match=reason) as caught:
        fetch()
    assert "Hugging Face: " in str(caught.value)
    assert "repeat the command, or put the file with sha256" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "127.0.0.1" not in str(caught.value)
    assert set(names(folder)) <= set(UNFINISHED)


def test_wrong_content_leaves_nothing_to_go_on_with(hub, fetch, folder):
    hub.script = ["wrong"]
    with pytest.raises(DownloadError):
        fetch()
    assert names(folder) == []


def test_a_redirect_to_another_host_does_not_get_the_token(hub, other_hub, fetch):
    elsewhere = f"http://localhost:{other_hub.port}/blob"
    hub.script = ["redirect /moved", f"redirect {elsewhere}"]
    fetch(token="secret")
    assert [headers.get("authorization") for _, headers in hub.requests] == ["Bearer secret"] * 2
    assert [headers.get("authorization") for _, headers in other_hub.requests] == [None]


def test_a_redirect_to_another_port_does_not_get_the_token(hub, other_hub, fetch):
    hub.script = [f"redirect {other_hub.url}/blob"]
    fetch(token="secret")
    assert "authorization" not in other_hub.requests[0][1]


def test_after_a_redirect_a_range_is_asked_for_again(hub, other_hub, fetch):
    hub.script = [f"redirect {other_hub.url}/blob"] * 2
    other_hub.script = ["half"]
    fetch()
    assert other_hub.ranges == [None, "bytes=500000-"]


# A proxy stands for the outside world: a public name that is answered by the local hub.


@pytest.mark.parametrize("inside", ["127.0.0.1", "localhost", "169.254.169.254", "10.1.2.3", "[::1]"])
def test_a_public_hub_can_not_redirect_into_the_local_network(inside, hub, fetch, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", hub.url)
    hub.script = [f"redirect http://{inside}:{hub.port}/secret"]
    with pytest.raises(DownloadError, match="redirects to an address inside the local network"):
        fetch(endpoint="http://hub.example.org")
    assert len(hub.requests) == 1


def test_the_token_is_not_sent_unencrypted_to_a_public_hub(hub, fetch, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", hub.url)
    fetch(endpoint="http://hub.example.org", token="secret")
    assert "authorization" not in hub.requests[0][1]


def test_an_unusable_proxy_setting_is_one_sentence(fetch, monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "gopher://x")
    with pytest.raises(DownloadError, match="proxy or certificate settings"):
        fetch()


@pytest.mark.parametrize(
    "endpoint", ["http://127.0.0.1:9", "http://", "nonsense", "http://host:port", "http://a b/"]
)
def test_an_address_where_nothing_answers_is_one_sentence(endpoint, fetch):
    with pytest.raises(DownloadError, match=r"could not be reached|not a valid URL"):
        fetch(endpoint=endpoint)


def test_a_hub_that_does_not_answer_in_time_is_given_up(hub, fetch):
    hub.script = ["wait"]
    with pytest.raises(DownloadError, match=r"did not answer within 0\.2 seconds"):
        fetch(first_answer_s=0.2)


def test_a_transfer_that_stalls_is_picked_up(hub, fetch):
    hub.script = ["stall"]
    assert fetch(read_s=0.2).read_bytes() == hub.content
    assert hub.ranges == [None, "bytes=500000-"]


def test_a_transfer_that_drips_is_picked_up(hub, fetch):
    hub.script = ["drip"]
    assert fetch(read_s=0.2).read_bytes() == hub.content
    assert len(hub.requests) >= 2


def test_a_connection_that_can_not_be_made_again_is_tried_again_once_something_came(hub, fetch):
    hub.script = ["half", "wait"]
    assert fetch(first_answer_s=1.0).read_bytes() == hub.content
    assert hub.ranges == [None, "bytes=500000-", "bytes=500000-"]


def test_nothing_of_a_cookie_comes_back(hub, fetch):
    hub.script = ["redirect /moved"]
    fetch()
    assert all("cookie" not in headers for _, headers in hub.requests)


def test_the_offline_switch_asks_the_hub_for_nothing(hub, fetch):
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE is set"):
        fetch(hub_offline=True)
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
