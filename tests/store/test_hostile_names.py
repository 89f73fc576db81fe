"""Thousands of hostile names, digests and registers: nothing outside the store's folder is read as a model,
changed or deleted."""

import json
import os
import random
from contextlib import suppress
from pathlib import Path

import pytest

from models import gguf_bytes, make_gguf, record_for
from nanollama.cli.main import main
from nanollama.errors import FormatError, NanollamaError
from nanollama.store.names import Digest, ModelName
from nanollama.store.plans import HUB_ONLY
from nanollama.store.registry import Registry
from nanollama.store.store import Store

PIECES = (
    *(
        "..",
        ".",
        "/",
        "\\",
        "//",
        "../",
        "..\\",
        "%2e%2e",
        "%2f",
        "\0",
        "\n",
        "\r",
        " ",
        "",
        ":",
        "::",
        "@",
        "+",
    ),
    *(
        "con",
        "nul.gguf",
        "CON",
        "aux",
        "com1",
        "lpt0",
        "a",
        "b",
        "library",
        "victim",
        "latest",
        "x" * 300,
        "~",
    ),
    *(
        "file:///etc/passwd",
        "hf.co",
        "hf.co/",
        "localhost:22",
        "127.0.0.1",
        "[::1]",
        "169.254.169.254",
        "-",
        "--",
    ),
    *(
        "\u202e",
        "\u2024\u2024",
        "\uff0e\uff0e",
        "\u0661",
        "é",
        "\ud800",
        "$HOME",
        "`id`",
        ";rm -rf",
        "*",
        "?",
        "|",
    ),
    *("uploads", "models.json", ".lock", ".gguf", "m.gguf", "http://", "https://127.0.0.1/a.gguf", "sha256-"),
)
COUNT = 5000


def hostile_texts(seed, count=COUNT):
    chooser = random.Random(seed)
    for _ in range(count):
        yield "".join(chooser.choices(PIECES, k=chooser.randint(1, 6)))


def snapshot(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Inode, size and time of everything below ``folder``, and of the folders themselves."""
    found = {}
    for directory, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = os.path.join(directory, name)
            status = os.lstat(path)
            found[path] = (status.st_ino, status.st_size, status.st_mtime_ns)
    return found


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A folder with victims around a store; the working folder and the home folder are among them."""
    for place in ("victim/m.gguf", "home/m.gguf", "work/a.gguf", "library/victim/latest/m.gguf", "b.gguf"):
        make_gguf(tmp_path / place)
    (tmp_path / "secret").write_text("secret")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.chdir(tmp_path / "work")
    store = Store(tmp_path / "data/nanollama/models", catalogue=())
    own = make_gguf(store.folder(ModelName.parse("a")) / "m.gguf")
    store.add(record_for(own, "a", owned=True))
    return tmp_path


def outside(world):
    return {path: state for path, state in snapshot(world).items() if "/data" not in path[len(str(world)) :]}


def test_no_name_leads_out_of_the_store(world):
    before = outside(world)
    root = world / "data/nanollama/models"
    store = Store(root, catalogue=())
    parsed = 0
    for text in hostile_texts(1):
        try:
            name = ModelName.parse(text)
        except NanollamaError:
            continue
        parsed += 1
        folder = store.folder(name)
        assert folder.is_relative_to(root)
        assert ".." not in folder.parts
        assert len(folder.relative_to(root).parts) in (3, 4)
    assert parsed > 50, "some must be names, or this tests nothing"
    assert outside(world) == before


@pytest.mark.parametrize("action", ["locate", "copy", "remove", "pull", "verify"])
def test_no_text_from_outside_changes_anything_but_the_store(action, world):
    before = outside(world)
    store = Store(world / "data/nanollama/models", catalogue=())
    actions = {
        "locate": lambda text: store.locate(text, fetch=False),
        "copy": lambda text: store.copy(ModelName.parse("a"), ModelName.parse(text), replacing=True),
        "remove": lambda text: store.remove(ModelName.parse(text), delete_file=True),
        "pull": lambda text: store.pull(text, hosts=HUB_ONLY),
        "verify": lambda text: store.verify(ModelName.parse(text)),
    }
    for text in hostile_texts(action, COUNT // 5):
        with suppress(NanollamaError):
            actions[action](text)
    assert outside(world) == before


def test_no_argument_of_the_command_line_changes_anything_but_the_store(world, capsys):
    before = outside(world)
    for text in hostile_texts(3, 60):
        for command in (["path"], ["rm"], ["cp", "a"], ["show"], ["verify"], ["import", "--name"]):
            argv = [*command, text] if command[0] != "import" else [*command, text, str(world / "b.gguf")]
            assert main(argv) in (0, 1, 2)
    capsys.readouterr()
    assert outside(world) == before


def hostile_digests(count):
    chooser = random.Random(4)
    good = "0123456789abcdef" * 4
    for _ in range(count):
        text = chooser.choice(("sha256:", "sha256-", "SHA256:", "", "sha512:", "sha256:../")) + good
        cut = chooser.randint(0, len(text))
        text = chooser.choice(
            (
                text[:cut],
                text + "0",
                text.upper(),
                text[:cut] + chooser.choice(PIECES) + text[cut + 1 :],
                text * 1000,
            )
        )
        yield text


def test_only_a_digest_is_a_digest():
    accepted = 0
    for text in hostile_digests(COUNT):
        try:
            digest = Digest(text)
        except FormatError:
            continue
        accepted += 1
        assert len(digest.hex) == 64
        assert set(digest.hex) <= set("0123456789abcdef")
    assert accepted < COUNT


def test_a_register_full_of_hostile_entries_deletes_nothing_outside_the_store(world):
    before = outside(world)
    root = world / "data/nanollama/models"
    chooser = random.Random(6)
    paths = [
        "../../../secret",
        "/etc/passwd",
        str(world / "secret"),
        "..",
        ".",
        "a/../../../../b.gguf",
        "~/m.gguf",
    ]
    models = {}
    for number in range(100):
        models[f"m{number}:latest"] = {
            "format": chooser.choice(["gguf", "safetensors"]),
            "path": chooser.choice([*paths, "".join(chooser.choices(PIECES, k=3))]),
            "size": chooser.choice([6, len(gguf_bytes())]),
            "modified": "2026-01-01T00:00:00+00:00",
            "owned": chooser.choice([True, True, False]),
            "files": [
                {
                    "name": chooser.choice(
                        [*paths, "m.gguf", "secret", "".join(chooser.choices(PIECES, k=3))]
                    ),
                    "size": chooser.choice([6, len(gguf_bytes())]),
                }
            ],
        }
    Registry(root).path.write_text(json.dumps({"version": 1, "models": models}))
    store = Store(root, catalogue=())
    store.list()
    for text in models:
        try:
            store.remove(ModelName.parse(text))
        except NanollamaError:
            continue
    assert outside(world) == before
