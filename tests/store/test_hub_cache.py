"""The cache of the Hugging Face clients, as they lay it out: links to blobs named by their digests."""

import hashlib

import pytest

from models import make_checkpoint, make_gguf
from nanollama.errors import UsageError
from nanollama.store.hub_cache import cached_models, default_folder
from nanollama.store.imports import Skipped
from nanollama.store.store import Store

OLD, NEW = "1" * 40, "2" * 40


def into_blobs(repository):
    """Replaces the files of all snapshots by links to blobs, large ones named by SHA-256."""
    blobs = repository / "blobs"
    blobs.mkdir(exist_ok=True)
    for path in sorted((repository / "snapshots").rglob("*")):
        if path.is_file() and not path.is_symlink():
            data = path.read_bytes()
            large = path.suffix in {".gguf", ".safetensors"}
            name = hashlib.sha256(data).hexdigest() if large else hashlib.sha1(data).hexdigest()
            path.rename(blobs / name)
            path.symlink_to(blobs / name)


@pytest.fixture
def repository(tmp_path):
    """``me/repo`` with two commits, of which ``main`` is the older one."""
    repository = tmp_path / "hub/models--Me--Repo-GGUF"
    make_gguf(repository / f"snapshots/{OLD}/repo-Q4_K_M.gguf")
    make_gguf(repository / f"snapshots/{NEW}/repo-Q8_0.gguf", general__name="newer")
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(OLD)
    into_blobs(repository)
    return repository


def found(repository):
    return list(cached_models(repository.parent))


def test_a_gguf_is_registered_through_its_link_with_the_digest_of_its_blob(repository, tmp_path):
    [each] = found(repository)
    record = each.record
    assert str(record.name) == "hf.co/me/repo-gguf:q4_k_m"
    assert record.path == repository / f"snapshots/{OLD}/repo-Q4_K_M.gguf"
    assert record.digest.hex == record.path.resolve().name
    assert record.source == f"hf.co/Me/Repo-GGUF@{OLD}"
    store = Store(tmp_path / "store", catalogue=())
    store.add(record)
    assert store.locate("hf.co/Me/Repo-GGUF:Q4_K_M", fetch=False).path == record.path
    assert store.verify(record.name).problems == ()
    assert store.remove(record.name).deleted == ()
    assert record.path.exists()


def test_without_a_main_branch_the_latest_commit_is_taken(repository):
    (repository / "refs/main").unlink()
    import os

    os.utime(repository / "snapshots" / OLD, (1, 1))
    [each] = found(repository)
    assert str(each.record.name) == "hf.co/me/repo-gguf:q8_0"


@pytest.mark.parametrize("text", ["../../../..", "x", "3" * 40, "\0", ""])
def test_a_branch_that_names_no_commit_leads_nowhere(text, repository):
    (repository / "refs/main").write_text(text)
    assert found(repository)[0].record.path.is_relative_to(repository / "snapshots")


def test_a_checkpoint_is_registered_as_a_folder(repository):
    make_checkpoint(repository.parent / f"models--me--checkpoint/snapshots/{NEW}")
    into_blobs(repository.parent / "models--me--checkpoint")
    _, each = found(repository)
    record = each.record
    assert (str(record.name), record.format) == ("hf.co/me/checkpoint:latest", "safetensors")
    assert [file.digest is not None for file in record.files] == [False, True]
    assert record.digest is None


def test_projectors_are_no_models(repository):
    make_gguf(repository / f"snapshots/{OLD}/mmproj-F16.gguf")
    assert len(found(repository)) == 1


def test_what_is_no_model_is_skipped_with_a_reason(repository):
    (repository.parent / f"models--me--pictures/snapshots/{NEW}").mkdir(parents=True)
    (repository.parent / "models--nobody").mkdir()
    bad = repository.parent / f"models--me--bad/snapshots/{NEW}/bad.gguf"
    make_gguf(bad).write_bytes(b"nonsense")
    skipped = {each.name: each.reason for each in found(repository) if isinstance(each, Skipped)}
    assert skipped["hf.co/me/pictures"].startswith("it has neither")
    assert skipped["models--nobody"].startswith("it has no snapshot")
    assert "not a GGUF file" in skipped["hf.co/me/bad:bad"]


def test_a_link_to_nowhere_is_skipped(repository):
    link = repository / f"snapshots/{OLD}/repo-Q4_K_M.gguf"
    link.resolve().unlink()
    assert isinstance(found(repository)[0], Skipped)


def test_a_folder_that_is_not_there_is_one_sentence(tmp_path):
    with pytest.raises(UsageError, match="--from DIR or HF_HUB_CACHE"):
        list(cached_models(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"HF_HUB_CACHE": "/a/hub"}, "/a/hub"),
        ({"HF_HOME": "/a"}, "/a/hub"),
        ({"XDG_CACHE_HOME": "/a"}, "/a/huggingface/hub"),
        ({"HOME": "/a"}, "/a/.cache/huggingface/hub"),
    ],
)
def test_the_cache_lies_where_the_hugging_face_clients_have_it(environment, folder, monkeypatch):
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert str(default_folder()) == folder
