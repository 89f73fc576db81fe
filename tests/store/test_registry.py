"""The register is whole at any moment, is recovered where it is damaged, and is never lost."""

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

import models
from models import make_gguf, record_for
from nanollama.errors import FormatError, NanollamaError, UnsupportedError
from nanollama.store.names import Digest, ModelName
from nanollama.store.recipe import Recipe
from nanollama.store.registry import Record, RecordFile, Registry, record_from_json, record_to_json
from nanollama.types import Message

FULL = Recipe(
    template="{{ messages }}",
    system="Be brief.",
    parameters={"temperature": 0.5, "top_k": 3, "stop": ("a", "b"), "use_mmap": True},
    messages=(Message("user", "hé\x00\ud800"),),
    licences=("MIT",),
)


@pytest.fixture
def registry(tmp_path):
    return Registry(tmp_path / "store")


def save(registry, *records):
    with registry.change() as state:
        for record in records:
            state.records[record.name] = record


def test_an_absent_register_is_empty_and_reading_it_makes_nothing(registry):
    state = registry.read()
    assert (state.records, state.unreadable, state.notice) == ({}, {}, None)
    assert not registry.root.exists()


def test_a_record_is_read_back_as_it_was(registry, tmp_path):
    inside = record_for(make_gguf(registry.root / "library/x/1/x.gguf"), "x:1", owned=True, recipe=FULL)
    outside = record_for(make_gguf(tmp_path / "näme \udc80.gguf"), "hf.co/Me/Y:Q4")
    folder = Record(
        name=ModelName.parse("z"),
        format="safetensors",
        path=tmp_path / "folder",
        size=3,
        digest=None,
        modified=1.5,
        owned=False,
        source="somewhere",
        parent="x:1",
        files=(RecordFile("a.json", 1), RecordFile("b/c.safetensors", 2, Digest("sha256:" + "0" * 64))),
    )
    save(registry, inside, outside, folder)
    assert registry.read().records == {each.name: each for each in (inside, outside, folder)}
    text = registry.path.read_text()
    assert '"path": "library/x/1/x.gguf"' in text, "a path in the store is relative, so that it can be moved"
    assert str(tmp_path / "folder") in text


def test_paths_of_a_folder_lie_in_it_and_those_of_a_file_beside_it(tmp_path):
    gguf = record_for(make_gguf(tmp_path / "a.gguf"), "a")
    assert gguf.paths == (tmp_path / "a.gguf",)


def test_a_change_that_fails_changes_nothing(registry, tmp_path):
    first = record_for(make_gguf(tmp_path / "a.gguf"), "a")
    save(registry, first)
    with suppress(ZeroDivisionError), registry.change() as state:
        state.records.clear()
        raise ZeroDivisionError
    assert registry.read().records == {first.name: first}


def test_a_change_that_changes_nothing_writes_nothing(registry, tmp_path):
    save(registry, record_for(make_gguf(tmp_path / "a.gguf"), "a"))
    os.utime(registry.path, (1, 1))
    with registry.change():
        pass
    assert registry.path.stat().st_mtime == 1


DAMAGE = {
    "empty": b"",
    "cut off": b'{"version": 1, "models": {"a:lat',
    "zeros": bytes(4096),
    "no object": b"[]",
    "no models": b'{"version": 1}',
    "another version": b'{"version": 0, "models": {}}',
    "a version that is no number": b'{"version": true, "models": {}}',
    "no UTF-8": b'{"version": 1, "models": {"\xff": 1}}',
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("content", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_register_is_recovered_from_its_copy_and_kept_aside(content, registry, tmp_path):
    first = record_for(make_gguf(tmp_path / "a.gguf"), "a")
    second = record_for(make_gguf(tmp_path / "b.gguf"), "b")
    save(registry, first)
    registry.path.write_bytes(content)
    state = registry.read()
    assert state.records == {first.name: first}
    assert state.notice == "models.json is damaged; its copy models.json.bak is used"
    save(registry, second)
    assert registry.read().records == {first.name: first, second.name: second}
    assert registry.read().notice is None
    assert (registry.root / "models.json.damaged").read_bytes() == content


def test_a_register_that_is_gone_is_recovered_from_its_copy(registry, tmp_path):
    first = record_for(make_gguf(tmp_path / "a.gguf"), "a")
    save(registry, first)
    registry.path.unlink()
    assert registry.read().records == {first.name: first}
    save(registry)
    assert registry.read().notice is None


def test_where_the_copy_is_damaged_too_it_is_said_what_is_lost(registry):
    registry.root.mkdir()
    registry.path.write_bytes(b"{")
    (registry.root / "models.json.bak").write_bytes(b"")
    assert "only models that lie in the store's own folders are known" in registry.read().notice


def test_a_register_of_a_newer_version_is_refused_and_left_alone(registry):
    registry.root.mkdir()
    registry.path.write_bytes(b'{"version": 2, "models": {}}')
    with pytest.raises(UnsupportedError, match=r"has version 2.*update nanollama"):
        registry.read()
    with pytest.raises(UnsupportedError), registry.change():
        pass
    assert registry.path.read_bytes() == b'{"version": 2, "models": {}}'


def test_a_register_that_is_no_regular_file_is_refused_without_blocking(registry, tmp_path):
    registry.root.mkdir()
    os.mkfifo(registry.path)
    with pytest.raises(NanollamaError, match="expected a readable file and no link"):
        registry.read()
    registry.path.unlink()
    registry.path.symlink_to("/dev/zero")
    with pytest.raises(NanollamaError, match="expected a readable file and no link"):
        registry.read()


def test_a_store_that_can_not_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with (
        pytest.raises(NanollamaError, match=r"could not be written .*check the disk"),
        Registry(tmp_path / "file").change(),
    ):
        pass


WRONG = {
    "no object": [],
    "a field too many": {"colour": "red"},
    "a field that is missing": {"path": None, "size": ...},
    "a format": {"format": "pickle"},
    "a path out of the store": {"owned": True, "path": "/etc/passwd"},
    "a path up": {"owned": True, "path": "../x.gguf"},
    "the store itself": {"owned": True, "path": "."},
    "a size": {"size": -1},
    "a size that is a truth value": {"size": True},
    "a digest": {"digest": "sha256:../../x"},
    "a time": {"modified": "yesterday"},
    "a time out of range": {"modified": "9999-99-99"},
    "no files": {"files": []},
    "a file up": {"files": [{"name": "../x", "size": 1}]},
    "an absolute file": {"files": [{"name": "/etc/passwd", "size": 1}]},
    "a path that no system takes": {"path": "a\0.gguf"},
    "a path that can't be encoded": {"path": "\ud800.gguf"},
    "a file with a NUL": {"files": [{"name": "a\0", "size": 1}]},
    "a file with a backslash": {"files": [{"name": "..\\x", "size": 1}]},
    "a recipe": {"recipe": {"template": 5}},
    "a source": {"source": 5},
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG.keys())
def test_what_is_no_record_is_reported_kept_and_does_no_harm(change, registry, tmp_path):
    good = record_for(make_gguf(tmp_path / "a.gguf"), "a")
    entry = record_to_json(good, registry.root) | change if isinstance(change, dict) else change
    if isinstance(entry, dict):
        entry = {key: value for key, value in entry.items() if value is not ...}
    with pytest.raises(FormatError):
        record_from_json(good.name, entry, registry.root)
    registry.root.mkdir()
    registry.path.write_text(json.dumps({"version": 1, "models": {"bad": entry, "bad:1": entry}}))
    save(registry, good)
    state = registry.read()
    assert state.records == {good.name: good}
    assert set(state.unreadable) == {"bad", "bad:1"}
    assert json.loads(registry.path.read_text())["models"]["bad"] == entry


@pytest.mark.parametrize("text", ["../x", "a b", "A:1", "x", "x:latest/..", ""])
def test_a_key_that_is_no_name_in_its_shortest_form_is_not_one(text, registry, tmp_path):
    entry = record_to_json(record_for(make_gguf(tmp_path / "a.gguf"), "a"), registry.root)
    registry.root.mkdir()
    registry.path.write_text(json.dumps({"version": 1, "models": {text: entry}}))
    assert registry.read().records == {}
    assert text in registry.read().unreadable


ADD_MANY = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from models import record_for
from nanollama.store.registry import Registry
for number in range(25):
    record = record_for(Path(sys.argv[4]), f"{sys.argv[3]}:{number}")
    with Registry(Path(sys.argv[2])).change() as state:
        state.records[record.name] = record
"""


def test_processes_that_change_it_take_turns(registry, tmp_path):
    path, tests = make_gguf(tmp_path / "a.gguf"), Path(models.__file__).parent
    arguments = [sys.executable, "-c", ADD_MANY, tests, registry.root]
    workers = [subprocess.Popen([*arguments, name, path]) for name in "abc"]
    assert [worker.wait(60) for worker in workers] == [0, 0, 0]
    assert len(registry.read().records) == 75


def test_each_damaged_register_is_kept_beside_those_before(registry, tmp_path):
    first = record_for(make_gguf(tmp_path / "a.gguf"), "a")
    for number in range(3):
        save(registry, first)
        registry.path.write_bytes(b"damage %d" % number)
        save(registry, record_for(first.path, f"b{number}"))
    kept = sorted(path.name for path in registry.root.glob("*.damaged*"))
    assert kept == ["models.json.damaged", "models.json.damaged-2", "models.json.damaged-3"]
    assert [(registry.root / name).read_bytes()[-1:] for name in kept] == [b"0", b"1", b"2"]
