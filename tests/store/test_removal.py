"""What nobody uses any more is deleted, and nothing else."""

import pytest

from models import make_gguf
from nanollama.errors import ModelNotFoundError, UsageError
from nanollama.store.files import locked
from nanollama.store.names import ModelName

A, B, C = (ModelName.parse(text) for text in ("a", "b", "c:1"))


def names(store):
    return [str(record.name) for record in store.list()]


def files_below(folder):
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith("models.json")
    )


def test_a_copy_shares_its_files_until_the_last_name_is_removed(store, fetched):
    store.copy(A, C)
    removed = store.remove(A)
    assert removed.deleted == ()
    assert removed.kept == ((fetched.path, "c:1 uses it"),)
    assert names(store) == ["c:1"]
    assert store.remove(C).deleted == (fetched.path,)
    assert files_below(store.root) == []
    assert not (store.root / "library").exists(), "folders that are empty go too"


def test_a_file_that_nanollama_did_not_fetch_is_kept_and_said_so(store, imported):
    removed = store.remove(B)
    assert removed.kept == ((imported.path, "nanollama did not fetch it; --delete-file deletes such a file"),)
    assert imported.path.exists()
    assert names(store) == []


def test_such_a_file_is_deleted_on_demand(store, imported):
    assert store.remove(B, delete_file=True).deleted == (imported.path,)
    assert not imported.path.exists()


def test_of_a_link_only_the_link_is_deleted(store, tmp_path):
    target = make_gguf(tmp_path / "blob")
    (tmp_path / "link.gguf").symlink_to(target)
    store.import_path(str(tmp_path / "link.gguf"), B)
    removed = store.remove(B, delete_file=True)
    assert removed.kept == ((target, "only the link to it was deleted"),)
    assert target.exists()
    assert not (tmp_path / "link.gguf").exists()


def test_a_name_without_a_model_can_not_be_removed(store):
    with pytest.raises(ModelNotFoundError):
        store.remove(A)


def test_an_unfinished_download_is_removed_by_its_name(store):
    folder = store.folder(A)
    (folder / "a.gguf.wheels").mkdir(parents=True)
    (folder / "a.gguf.part").write_bytes(b"half")
    (folder / "a.gguf.part.map").write_bytes(b"half")
    assert len(store.remove(A).deleted) == 3
    assert not (store.root / "library").exists()


def test_a_model_that_is_being_fetched_is_not_removed(store):
    folder = store.folder(A)
    folder.mkdir(parents=True)
    (folder / "a.gguf.part").write_bytes(b"half")
    with locked(folder / ".lock"), pytest.raises(UsageError, match="another process is fetching"):
        store.remove(A)
    assert (folder / "a.gguf.part").exists()
