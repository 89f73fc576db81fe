"""The GGUF reader under random damage, and at each of its limits with files that are large but benign."""

import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nanollama.errors import FormatError, UnsupportedError
from nanollama.formats.gguf import GGUFFile
from nanollama.formats.gguf_header import (
    MAX_ARRAY_ITEMS,
    MAX_COUNT,
    MAX_NAME_BYTES,
    MAX_STRING_BYTES,
)
from nanollama.formats.gguf_values import Typed, ValueType
from nanollama.formats.gguf_write import Value, write_gguf
from nanollama.quant.formats import FORMATS

BOUNDARIES = [struct.pack("<Q", n) for n in (0, 1, 9, 2**31, 2**32, 2**63, 2**64 - 1, 2**64 - 32)]


@pytest.fixture(scope="module")
def seed_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("seed") / "m.gguf"
    metadata: dict[str, Value] = {
        "general.architecture": "llama",
        "general.alignment": 32,
        "tokenizer.ggml.tokens": ["a", "bc"],
        "tokenizer.ggml.scores": [0.0, -1.0],
        "flags": [True, False],
        "n": -5,
    }
    shapes = [("a", (2, 32), "Q4_1"), ("b", (8,), "F32"), ("c", (256,), "Q6_K")]
    tensors = [
        (
            name,
            shape,
            FORMATS[fmt],
            bytes(FORMATS[fmt].nbytes(shape[0] * (shape[1] if len(shape) > 1 else 1))),
        )
        for name, shape, fmt in shapes
    ]
    write_gguf(path, metadata, tensors)
    return path.read_bytes()


PLACE = st.integers(0, 700)  # reaches beyond the header and a little into the data
EDITS = st.lists(
    st.tuples(PLACE, st.binary(min_size=1, max_size=2) | st.sampled_from(BOUNDARIES)), max_size=4
)


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=EDITS, cut=st.none() | st.integers(0, 900))
def test_any_damage_gives_a_working_file_or_a_clear_error(
    tmp_path: Path, seed_file: bytes, edits: list[tuple[int, bytes]], cut: int | None
) -> None:
    content = bytearray(seed_file)
    for place, replacement in edits:
        content[place : place + len(replacement)] = replacement
    path = tmp_path / "m.gguf"
    path.write_bytes(content[:cut])
    try:
        file = GGUFFile(path)
    except (FormatError, UnsupportedError):
        return
    with file:
        end = 0
        for info in file.tensors.values():
            assert info.offset >= end
            end = info.offset + info.nbytes
            assert end <= path.stat().st_size
            assert bytes(file.data(info.name)) == bytes(content[info.offset : end])
        for key in file.metadata:
            assert file.typed(key).value is file.metadata[key]


F32 = FORMATS["F32"]
AT_A_LIMIT: dict[str, Callable[[Path], None]] = {
    "keys": lambda path: write_gguf(path, {f"k{i}": True for i in range(MAX_COUNT)}, []),
    "tensors": lambda path: write_gguf(path, {}, ((f"t{i}", (1,), F32, bytes(4)) for i in range(MAX_COUNT))),
    "names": lambda path: write_gguf(
        path, {"k" * MAX_NAME_BYTES: 1}, [("t" * MAX_NAME_BYTES, (1,), F32, bytes(4))]
    ),
    "string": lambda path: write_gguf(path, {"k": bytes(MAX_STRING_BYTES)}, []),
    "array": lambda path: write_gguf(
        path, {"k": Typed(ValueType.ARRAY, bytes(MAX_ARRAY_ITEMS), ValueType.UINT8)}, []
    ),
}


@pytest.mark.parametrize("limit", AT_A_LIMIT)
def test_a_large_benign_file_opens_at_each_limit(tmp_path: Path, limit: str) -> None:
    AT_A_LIMIT[limit](tmp_path / "m.gguf")
    with GGUFFile(tmp_path / "m.gguf") as file:
        assert len(file.metadata) + len(file.tensors) in (1, 2, MAX_COUNT)
