"""Repairing what was fetched, and pulling beside what other names still use."""

from dataclasses import replace

import pytest

from nanollama.errors import UnsupportedError, UsageError
from nanollama.store.catalogue import HubFile
from nanollama.store.names import ModelName
from nanollama.store.recipe import Recipe

A, B = ModelName.parse("a"), ModelName.parse("b")
TOY, MINE = ModelName.parse("toy:1b"), ModelName.parse("mine")

DAMAGES = {
    "gone": lambda path: path.unlink(),
    "shorter": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "changed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_model_is_fetched_again_for_all_its_names(damage, hub, make_store):
    store = make_store()
    path = store.pull("toy:1b").path
    store.create(MINE, store.locate("toy:1b"), Recipe(system="Hi"), "toy:1b")
    damage(path)
    assert len(store.verify(MINE).problems) == 1
    assert path.exists() is (damage is not DAMAGES["gone"]), "without repair nothing is touched"
    found = store.verify(MINE, repair=True)
    assert (found.problems, found.repaired) == ((), True)
    assert path.read_bytes() == hub.content
    assert store.find(MINE).recipe == Recipe(system="Hi")
    assert store.verify(TOY).problems == ()


def test_a_model_that_is_right_is_not_fetched_again(hub, make_store):
    store = make_store()
    store.pull("toy:1b")
    asked = len(hub.requests)
    assert not store.verify(TOY, repair=True).repaired
    assert len(hub.requests) == asked


def test_a_new_version_does_not_replace_a_file_that_another_name_uses(hub, make_store, make_entry):
    old_store = make_store()
    old = old_store.pull("toy:1b")
    old_store.copy(TOY, MINE)
    before = hub.content
    hub.content = bytes(reversed(before))
    store = make_store(make_entry(content=hub.content))
    new = store.pull("toy:1b")
    assert new.path.read_bytes() == hub.content
    assert store.find(MINE).path == old.path
    assert old.path.read_bytes() == before
    store.remove(MINE)
    assert not old.path.exists()
    assert store.find(TOY) == new
    store.remove(TOY)
    assert [path for path in store.root.rglob("*") if path.is_dir()] == []


def test_a_new_version_replaces_the_old_one_that_nobody_else_uses(hub, make_store, make_entry):
    old = make_store().pull("toy:1b")
    hub.content = bytes(reversed(hub.content))
    new = make_store(make_entry(content=hub.content)).pull("toy:1b")
    assert new.path == old.path
    assert new.path.read_bytes() == hub.content


def test_a_file_under_a_new_name_leaves_nothing_of_the_old_one(hub, make_store, make_entry):
    old = make_store().pull("toy:1b")
    entry = replace(make_entry(HubFile("org/toy", "def", "better.gguf")), file="better.gguf")
    new = make_store(entry).pull("toy:1b")
    assert new.path.name == "better.gguf"
    assert not old.path.exists()


def test_what_the_catalogue_recommends_comes_with_the_model(hub, make_store, make_entry):
    store = make_store(replace(make_entry(), sampling={"temperature": 0.0}))
    assert store.pull("toy:1b").recipe == Recipe(parameters={"temperature": 0.0}, licences=("MIT",))


def test_a_name_that_was_made_here_can_not_be_pulled(hub, make_store):
    store = make_store()
    store.pull("toy:1b")
    store.copy(TOY, MINE)
    with pytest.raises(UsageError, match="there is nothing to pull it from"):
        store.pull("mine")


def test_changed_content_is_noticed_by_verify(store, fetched):
    assert store.verify(A).problems == ()
    content = bytearray(fetched.path.read_bytes())
    content[-1] ^= 1
    fetched.path.write_bytes(content)
    assert store.find(A), "sizes alone don't tell"
    assert store.verify(A).problems == (f"{fetched.path} does not have the sha256 it was registered with",)


def test_a_file_without_a_digest_has_its_header_checked(store, fetched):
    [file] = fetched.files
    store.add(replace(fetched, digest=None, files=(replace(file, digest=None),)))
    assert store.verify(A).unchecked == 1
    fetched.path.write_bytes(bytes(fetched.size))
    assert "not a GGUF file" in store.verify(A).problems[0]


def test_what_can_not_be_fetched_again_is_said(store, imported, fetched):
    imported.path.unlink()
    assert "it can't fetch it again" in store.verify(B, repair=True).problems[-1]
    fetched.path.unlink()
    with pytest.raises(UnsupportedError, match="made on this machine"):
        store.verify(A, repair=True)


def test_an_entry_that_is_no_record_is_reported_and_can_be_removed(store, fetched):
    text = (store.root / "models.json").read_text()
    (store.root / "models.json").write_text(text.replace('"gguf"', '"pickle"'))
    assert store.list() == []
    assert "its format is neither" in store.verify(A).problems[0]
    store.remove(A)
    assert store.state().unreadable == {}
