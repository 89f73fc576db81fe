"""Whole plans: several files, several connections, and what an interruption leaves."""

import hashlib
import random
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from nanollama.errors import DownloadError
from nanollama.store.catalogue import HubFile, UrlFile
from nanollama.store.download import DownloadSettings, download
from nanollama.store.fetch import Fetcher, FetchSettings
from nanollama.store.names import Digest, ModelName
from nanollama.store.plans import PullPlan, RemoteFile
from nanollama.store.registry import RecordFile

PIECE = 64 << 10
IN_PIECES = DownloadSettings(connections=4, piece_bytes=PIECE, backoff_s=0)
FILES = {
    "config.json": b"{}",
    "model-00001-of-00002.safetensors": random.Random(1).randbytes(300_000),
    "model-00002-of-00002.safetensors": random.Random(2).randbytes(200_000),
    "empty.json": b"",
}


def digest_of(content):
    return Digest(f"sha256:{hashlib.sha256(content).hexdigest()}")


def plan_of(files=FILES, known=lambda name: name.endswith(".safetensors")):
    return PullPlan(
        ModelName.parse("hf.co/org/toy"),
        "safetensors",
        tuple(
            RemoteFile(
                name,
                len(content),
                digest_of(content) if known(name) else None,
                (HubFile("org/toy", "abc", name),),
            )
            for name, content in files.items()
        ),
        "MIT",
        "hf.co/org/toy@abc",
    )


@pytest.fixture
def get(hub, tmp_path):
    hub.files = dict(FILES)

    def get(plan=None, progress=None, settings=IN_PIECES, **fetch_settings):
        fetcher = Fetcher(FetchSettings(**({"endpoint": hub.url} | fetch_settings)))
        return download(plan or plan_of(), tmp_path / "model", fetcher, progress, settings)

    return get


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_all_files_of_a_plan_arrive_and_are_reported_with_their_digests(get, tmp_path, recorder):
    files = get(progress=recorder)
    assert contents(tmp_path / "model") == FILES
    assert files == tuple(RecordFile(name, len(c), digest_of(c)) for name, c in FILES.items())
    assert recorder.notices == ["fetching hf.co/org/toy:latest (1 MB, licence: MIT)"]
    assert recorder.begun[0] == ("downloading hf.co/org/toy:latest", 500_002, 0)
    assert recorder.updates == sorted(recorder.updates)
    assert recorder.updates[-1] == 500_002
    assert recorder.ended == len(recorder.begun)


def test_a_large_file_comes_in_pieces_over_a_few_connections(hub, fetch):
    assert fetch(download_settings=IN_PIECES).read_bytes() == hub.content
    expected = [(start, min(start + PIECE, 1_000_000)) for start in range(0, 1_000_000, PIECE)]
    assert sorted(hub.ranges) == sorted(
        f"bytes={start}-{stop - 1 if stop < 1_000_000 else ''}" for start, stop in expected
    )


def test_no_more_connections_are_open_at_once_than_allowed(hub, fetch, monkeypatch):
    open_now, most, lock = 0, 0, threading.Lock()
    answer = hub.answer

    def counted(handler):
        nonlocal open_now, most
        with lock:
            open_now += 1
            most = max(most, open_now)
        answer(handler)
        with lock:
            open_now -= 1

    monkeypatch.setattr(hub, "answer", counted)
    hub.pace_s = 0.001
    fetch(download_settings=IN_PIECES)
    assert 2 <= most <= 5, "a connection that was closed may still be counted by the server"


TROUBLE = {
    "pieces break off": ["half"] * 5,
    "pieces are reset": ["reset", "serve"] * 5,
    "the hub is busy now and then": ["status 429", "serve", "status 503", "serve"] * 2,
    "bodies without a length break off": ["unmeasured"] * 5,
    "ranges are ignored": ["ignore-range"] * 30,
    "ranges are ignored in the middle": ["serve", "serve", "serve", "ignore-range"],
}


@pytest.mark.parametrize("script", TROUBLE.values(), ids=TROUBLE.keys())
def test_pieces_survive_trouble(script, hub, fetch, tmp_path):
    hub.script = list(script)
    assert fetch(download_settings=IN_PIECES).read_bytes() == hub.content
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["toy.gguf"]


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        ("wrong", "does not have the expected sha256"),
        ("long", "1000004 bytes instead of 1000000"),
        ("less", "999999 bytes instead of 1000000"),
        ("shifted", "another part of the file"),
        ("status 403", "HTTP 403"),
    ],
)
def test_one_bad_piece_is_one_sentence_and_no_model(step, reason, hub, fetch, tmp_path):
    hub.script = ["serve", "serve", step]
    with pytest.raises(DownloadError, match=reason):
        fetch(download_settings=IN_PIECES)
    assert not (tmp_path / "model/toy.gguf").exists()
    assert fetch(download_settings=IN_PIECES).read_bytes() == hub.content


def test_pieces_that_came_are_not_asked_for_again(hub, fetch):
    hub.script = ["serve"] * 8 + ["status 404"]
    with pytest.raises(DownloadError):
        fetch(download_settings=IN_PIECES)
    before = len(hub.requests)
    assert fetch(download_settings=IN_PIECES).read_bytes() == hub.content
    assert len(hub.requests) - before <= 16 - 5


def test_no_file_gets_its_name_before_all_are_complete(hub, get, tmp_path):
    hub.script = ["serve"] * 6 + ["status 404"]
    with pytest.raises(DownloadError):
        get()
    assert not set(FILES) & set(contents(tmp_path / "model"))
    get()
    assert contents(tmp_path / "model") == FILES


def test_complete_files_with_a_digest_are_kept_and_the_others_fetched_again(hub, get, tmp_path):
    get()
    hub.requests.clear()
    (tmp_path / "model/model-00002-of-00002.safetensors").write_bytes(bytes(200_000))
    get()
    assert contents(tmp_path / "model") == FILES
    asked = {path.rpartition("/")[2] for path, _ in hub.requests}
    assert asked == {"config.json", "model-00002-of-00002.safetensors"}


def test_space_for_the_whole_plan_is_looked_for_before_the_first_byte(hub, get, tmp_path):
    free = shutil.disk_usage(tmp_path).free
    plan = plan_of()
    files = (*plan.files, RemoteFile("large.safetensors", free, None, plan.files[0].sources))
    with pytest.raises(DownloadError, match=r"needs [\d,]+ MB of disk space and [\d,]+ MB are free"):
        get(PullPlan(plan.name, plan.format, files, None, plan.source))
    assert hub.requests == []


def url_plan(hub, etag):
    hub.content = b"GGUF\x03" + bytes(19) + hub.content[24:]  # without a digest the form of a file counts
    source = UrlFile(f"{hub.url}/x/toy.gguf", etag)
    return PullPlan(
        ModelName.parse("127.0.0.1:1/x/toy"),
        "gguf",
        (RemoteFile("toy.gguf", len(hub.content), None, (source,)),),
        None,
        source.url,
    )


def test_a_file_that_changes_between_two_pieces_is_not_put_together(hub, get, tmp_path):
    hub.etag = '"v1"'
    hub.script = ["serve"] * 5 + ["changed"]
    with pytest.raises(DownloadError, match="the file there has changed"):
        get(url_plan(hub, '"v1"'))
    assert "toy.gguf" not in contents(tmp_path / "model")
    assert {headers.get("if-range") for _, headers in hub.requests} == {'"v1"'}


def test_the_token_is_not_sent_to_an_address_that_is_not_the_hub(hub, other_hub, get):
    get(url_plan(other_hub, None), token="secret")
    assert all("authorization" not in headers for _, headers in other_hub.requests)


INTERRUPTED = """
import os, signal, sys, threading
from pathlib import Path
from nanollama.store.catalogue import HubFile
from nanollama.store.download import DownloadSettings, download
from nanollama.store.fetch import Fetcher, FetchSettings
from nanollama.store.names import ModelName
from nanollama.store.plans import PullPlan, RemoteFile
url, folder = sys.argv[1:]
file = RemoteFile("toy.gguf", 1_000_000, None, (HubFile("org/toy", "abc", "toy.gguf"),))
plan = PullPlan(ModelName.parse("toy"), "gguf", (file,), None, "test")
signal.signal(signal.SIGINT, signal.default_int_handler)
threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    download(plan, Path(folder), Fetcher(FetchSettings(url)), None, DownloadSettings(4, 1 << 16, 0))
except KeyboardInterrupt:
    sys.exit(130)
"""


def test_ctrl_c_ends_a_download_whose_connections_are_all_silent(hub, tmp_path):
    hub.script = ["stall"] * 4
    done = subprocess.run([sys.executable, "-c", INTERRUPTED, hub.url, str(tmp_path)], timeout=20)
    assert done.returncode == 130
    assert not (Path(tmp_path) / "toy.gguf").exists()
