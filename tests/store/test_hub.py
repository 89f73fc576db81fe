"""What the hub's API may answer, and what becomes of it."""

import pytest

from hub_server import COMMIT, sibling
from nanollama.errors import DownloadError
from nanollama.store.fetch import Fetcher, FetchSettings, HttpError
from nanollama.store.hub import HubEntry, HubModel, hub_search, list_repo
from nanollama.store.names import Digest
from nanollama.store.transfer import SourceError


@pytest.fixture
def fetcher(hub):
    return Fetcher(FetchSettings(endpoint=hub.url, token="secret"))


def test_a_listing_has_commit_licence_sizes_and_digests(hub, fetcher):
    hub.publish("org/toy", {"toy.gguf": b"GGUF", "config.json": b"{}"})
    listing = list_repo(fetcher, "org/toy")
    assert (listing.commit, listing.licence) == (COMMIT, "mit")
    digest = Digest(f"sha256:{sibling('x.gguf', b'GGUF')['lfs']['sha256']}")
    assert listing.files == (HubEntry("toy.gguf", 4, digest), HubEntry("config.json", 2, None))
    path, headers = hub.questions[0]
    assert path == "/api/models/org/toy/revision/main?blobs=true"
    assert headers["authorization"] == "Bearer secret"


def test_a_licence_with_a_name_is_called_by_it(hub, fetcher):
    hub.publish("org/toy", {}, cardData={"license": "other", "license_name": "gemma"})
    assert list_repo(fetcher, "org/toy").licence == "gemma"


@pytest.mark.parametrize("card", [None, [], {"license": 3}, {"license": "a\x1b[31m"}, {"license": "x" * 999}])
def test_a_licence_that_can_not_be_shown_is_none(card, hub, fetcher):
    hub.publish("org/toy", {}, cardData=card)
    assert list_repo(fetcher, "org/toy").licence is None


def answer(**changes):
    return {"sha": COMMIT, "siblings": []} | changes


def one_file(**changes):
    return answer(siblings=[sibling("toy.gguf", b"GGUF") | changes])


HOSTILE = {
    "not JSON": b"<html>",
    "nothing": b"",
    "deeply nested": b"[" * 100_000,
    "a number of 5,000 digits": b'{"sha": ' + b"1" * 5000 + b"}",
    "invalid UTF-8": b"\xff\xfe\xfd",
    "larger than 16 MiB": b'"' + b"x" * (17 << 20) + b'"',
    "a list": [],
    "no list of files": {"sha": COMMIT},
    "a list of files that is none": answer(siblings={"a": 1}),
    "no commit": {"siblings": []},
    "a commit that is a path": answer(sha="../../main"),
    "a commit that is a number": answer(sha=5),
    "50,001 files": answer(siblings=[{}] * 50_001),
    "a file that is a word": answer(siblings=["toy.gguf"]),
    "a file without a name": one_file(rfilename=None),
    "a file without a size": one_file(size=None),
    "a size that is a word": one_file(size="4"),
    "a size that is true": one_file(size=True),
    "a size with a fraction": one_file(size=4.5),
    "a negative size": one_file(size=-1),
    "a size that no disk has": one_file(size=1 << 60),
    "a digest that is none": one_file(lfs={"sha256": "../" * 20}),
    "a digest in capitals": one_file(lfs={"sha256": "A" * 64}),
    "a digest that is a number": one_file(lfs={"sha256": 7}),
    "a digest that is missing": one_file(lfs={}),
    "a digest in a list": one_file(lfs=["0" * 64]),
}


@pytest.mark.parametrize("listing", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_listing_is_refused_in_a_clause(listing, hub, fetcher):
    hub.listings["org/toy"] = listing
    with pytest.raises(SourceError) as caught:
        list_repo(fetcher, "org/toy")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_a_busy_hub_is_asked_again(hub, fetcher):
    hub.publish("org/toy", {})
    hub.api_script = ["status 429", "status 503", "half"]
    assert list_repo(fetcher, "org/toy", backoff_s=0).commit == COMMIT
    assert len(hub.questions) == 4


def test_a_hub_that_stays_busy_is_given_up(hub, fetcher):
    hub.api_script = ["status 429"] * 9
    with pytest.raises(SourceError, match=r"busy \(HTTP 429\)"):
        list_repo(fetcher, "org/toy", backoff_s=0)
    assert len(hub.questions) == 4


def test_a_hub_that_asks_for_an_hour_is_given_up_at_once(hub, fetcher):
    hub.api_script = ["status 429 3600"]
    with pytest.raises(SourceError, match="busy"):
        list_repo(fetcher, "org/toy")
    assert len(hub.questions) == 1


@pytest.mark.parametrize("status", [401, 403, 404, 451])
def test_a_refusal_has_its_status(status, hub, fetcher):
    hub.api_script = [f"status {status}"]
    with pytest.raises(HttpError) as caught:
        list_repo(fetcher, "org/toy")
    assert caught.value.status == status


def test_an_answer_from_another_host_is_taken_but_the_token_stays_here(hub, other_hub, fetcher):
    other_hub.publish("org/toy", {})
    hub.api_script = [f"redirect {other_hub.url}/api/models/org/toy/revision/main"]
    assert list_repo(fetcher, "org/toy").commit == COMMIT
    assert "authorization" not in other_hub.questions[0][1]


def test_a_search_finds_repositories_by_words(hub, fetcher):
    hub.listings["search"] = [
        {"id": "org/toy-GGUF", "downloads": 12, "likes": 3, "lastModified": "2026-01-02T00:00:00.000Z"},
        {"id": "org/other", "downloads": None, "likes": -5},
    ]
    assert hub_search(fetcher, "toy model", 5) == [
        HubModel("hf.co/org/toy-GGUF", 12, 3, "2026-01-02T00:00:00.000Z"),
        HubModel("hf.co/org/other", 0, 0, ""),
    ]
    assert hub.questions[0][0].startswith("/api/models?search=toy+model&filter=gguf&")


@pytest.mark.parametrize(
    "rows", [{}, "x", [1], [{"id": 5}], [{"id": "../../etc"}], [{"id": "a/b\x1b[2J"}], [None], [{}]]
)
def test_search_results_that_are_no_repositories_are_left_out(rows, hub, fetcher):
    hub.listings["search"] = rows
    assert hub_search(fetcher, "toy") == []


def test_no_more_results_are_given_than_asked_for(hub, fetcher):
    hub.listings["search"] = [{"id": f"org/toy{n}"} for n in range(100)]
    assert len(hub_search(fetcher, "toy", 7)) == 7


def test_a_search_that_fails_is_one_sentence(hub):
    with pytest.raises(DownloadError, match=r"could not be searched .*HF_HUB_OFFLINE is set"):
        hub_search(Fetcher(FetchSettings(endpoint=hub.url, hub_offline=True)), "toy")
