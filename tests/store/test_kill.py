"""A process that is killed at any moment leaves a store that can be read, shows whole models, and takes the
same change again."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import models
from nanollama.store.names import ModelName
from nanollama.store.registry import is_complete
from nanollama.store.store import Store

KILLS = 100

WORK = """
import itertools, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from models import gguf_bytes, record_for
from nanollama.errors import NanollamaError
from nanollama.store.files import write_whole
from nanollama.store.names import ModelName
from nanollama.store.recipe import Recipe
from nanollama.store.store import Store

def work():
    store = Store(Path(sys.argv[1]), catalogue=())
    names = [ModelName.parse(f"m{i}") for i in range(4)]
    for count in itertools.count():
        one, other = names[count % 4], names[(count + 1) % 4]
        path = store.folder(one) / "m.gguf"
        for change in (
            lambda: path.parent.mkdir(parents=True, exist_ok=True),
            lambda: write_whole(path, gguf_bytes()),
            lambda: store.add(record_for(path, str(one), owned=True)),
            lambda: store.copy(one, other, replacing=True),
            lambda: store.create(one, store.locate(str(other)), Recipe(system=str(count)), str(other)),
            lambda: store.remove(other),
            lambda: store.remove(one),
        ):
            try:
                change()
            except (NanollamaError, FileNotFoundError):
                pass

for _ in sys.stdin:
    if (child := os.fork()) == 0:
        work()
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""
"""For each line it reads, a process that changes the store until it is killed."""


def test_a_process_killed_while_it_changes_the_store_does_no_harm(tmp_path):
    root, tests = tmp_path / "store", Path(models.__file__).parent
    chooser = random.Random(5)
    changed = set()
    command = [sys.executable, "-c", WORK, root, tests]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as workers:
        for attempt in range(4 * KILLS):
            if attempt >= KILLS and len(changed) > 1:
                break
            workers.stdin.write("\n")
            workers.stdin.flush()
            child = int(workers.stdout.readline())
            # On a busy machine a child does little in that time: later ones get more.
            time.sleep(chooser.uniform(0, 0.05) * 2 ** (attempt // KILLS))
            os.kill(child, signal.SIGKILL)
            assert int(workers.stdout.readline()) == signal.SIGKILL
            changed.add(checked(root))
            if attempt % 4 == 0:
                repeat(root, tmp_path / "again.gguf")
    assert len(changed) > 1, "the kills came at different moments"


def checked(root):
    """The names in the register, after a look at everything in it."""
    notices = []
    store = Store(root, catalogue=(), notice=notices.append)
    for record in store.list():
        assert is_complete(record)
        assert record.path.read_bytes() == models.gguf_bytes()
    assert notices == [], "the register itself was never half written"
    assert store.state().unreadable == {}
    return tuple(sorted(map(str, store.state().records)))


def repeat(root, path):
    """What a killed process wanted can be done."""
    store, name = Store(root, catalogue=()), ModelName.parse("again")
    store.import_path(str(models.make_gguf(path)), name)
    assert store.find(name) is not None
    store.remove(name)
    assert store.find(name) is None
