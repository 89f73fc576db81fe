"""What takes up the disk."""

from models import gguf_bytes
from nanollama.store.names import ModelName

A, B, C = (ModelName.parse(text) for text in ("a", "b", "c:1"))


def test_usage_counts_a_shared_file_once_and_everything_in_the_store(store, fetched, imported):
    store.copy(A, C)
    (store.folder(A) / "b.gguf.part").write_bytes(bytes(7))
    (store.root / "stray").write_bytes(bytes(5))
    usage = store.usage()
    size = len(gguf_bytes())
    rows = {use.name: (use.size, use.shared_size, use.shared_with, use.inside) for use in usage.models}
    assert rows == {
        "a:latest": (size, 0, None, True),
        "b:latest": (size, 0, None, False),
        "c:1": (0, size, "a:latest", True),
    }
    assert [size for _, size in usage.unfinished] == [7]
    assert [size for _, size in usage.others] == [5]
    assert (usage.inside, usage.elsewhere) == (size + 12, size)
