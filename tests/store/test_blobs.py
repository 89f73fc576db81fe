"""Uploads become whole files with the digest that was announced, or nothing."""

import hashlib
import os
import time
from pathlib import Path

import pytest

from nanollama.errors import FormatError, ModelNotFoundError, UsageError
from nanollama.store import blobs as blobs_module
from nanollama.store.blobs import Blobs, StorageFullError
from nanollama.store.names import Digest, ModelName
from nanollama.store.recipe import Recipe
from nanollama.store.store import Store

DATA = b"some bytes"
DIGEST = Digest(f"sha256:{hashlib.sha256(DATA).hexdigest()}")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "models")


def files(store: Store) -> list[str]:
    return sorted(str(path.relative_to(store.root)) for path in store.root.rglob("*") if path.is_file())


def test_a_file_comes_in_pieces_and_is_found_by_its_digest(store: Store) -> None:
    blobs = Blobs(store)
    assert blobs.find(DIGEST) is None
    upload = blobs.begin(DIGEST)
    for at in range(len(DATA)):
        upload.write(DATA[at : at + 1])
    assert blobs.find(DIGEST) is None, "it is not there before all of it is"
    upload.finish()
    found = blobs.find(DIGEST)
    assert found is not None
    assert found.read_bytes() == DATA
    upload.drop()
    assert blobs.find(DIGEST) == found


def test_another_file_than_was_announced_leaves_nothing(store: Store) -> None:
    upload = Blobs(store).begin(DIGEST)
    upload.write(b"others")
    with pytest.raises(UsageError, match="digest mismatch"):
        upload.finish()
    assert files(store) == []


def test_what_is_dropped_half_way_leaves_nothing(store: Store) -> None:
    upload = Blobs(store).begin(DIGEST)
    upload.write(DATA[:3])
    upload.drop()
    assert files(store) == []


def test_what_a_killed_process_left_goes_after_a_day_and_not_before(store: Store) -> None:
    blobs = Blobs(store)
    old, young = blobs.begin(DIGEST), blobs.begin(DIGEST)
    yesterday = time.time() - 2 * 86_400
    os.utime(old._part, (yesterday, yesterday))
    blobs.begin(DIGEST).drop()
    assert files(store) == [str(young._part.relative_to(store.root))]
    for upload in (old, young):
        upload.drop()


def test_an_upload_ends_before_the_disk_is_full(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blobs_module, "_SLACK_BYTES", 1 << 62)
    upload = Blobs(store).begin(DIGEST)
    with pytest.raises(StorageFullError, match="no room"):
        upload.write(DATA)
    upload.drop()
    assert files(store) == []


def test_what_was_not_uploaded_or_is_no_model_makes_none(store: Store) -> None:
    blobs, name = Blobs(store), ModelName.parse("mine")
    with pytest.raises(ModelNotFoundError, match="no file with the digest"):
        blobs.create(name, "mine.gguf", DIGEST, Recipe())
    upload = blobs.begin(DIGEST)
    upload.write(DATA)
    upload.finish()
    with pytest.raises(FormatError):
        blobs.create(name, "mine.gguf", DIGEST, Recipe())
    assert store.list() == []
    assert blobs.find(DIGEST) is not None, "the upload itself stays"


def test_a_link_in_the_place_of_an_upload_is_not_followed(store: Store, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(DATA)
    place = store.root / "uploads"
    place.mkdir(parents=True)
    (place / f"sha256-{DIGEST.hex}").symlink_to(secret)
    assert Blobs(store).find(DIGEST) is None
