"""Files that break the rules of GGUF: each gives one clear error, without allocating what it claims."""

import json
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from nanollama.errors import FormatError, NanollamaError, UnsupportedError
from nanollama.formats.gguf import GGUFFile
from nanollama.formats.gguf_header import MAX_STRINGS

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
SHAPES = {U8: "B", U16: "H", U32: "I", I32: "i", F32: "f", BOOL: "B", U64: "Q", I64: "q", F64: "d"}
HUGE = [2**32, 2**63, 2**64 - 1]


def text(value: str | bytes, length: int | None = None) -> bytes:
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw


def number(key: str | bytes, kind: int, value: float) -> bytes:
    return text(key) + struct.pack("<I" + SHAPES[kind], kind, value)


def string(key: str | bytes, value: str | bytes, length: int | None = None) -> bytes:
    return text(key) + struct.pack("<I", STRING) + text(value, length)


def items(key: str, kind: int, payload: bytes, count: int) -> bytes:
    return text(key) + struct.pack("<IIQ", ARRAY, kind, count) + payload


def tensor(
    name: str | bytes = "t",
    dims: tuple[int, ...] = (32,),
    kind: int = 0,
    offset: int = 0,
    n: int | None = None,
) -> bytes:
    dimensions = struct.pack(f"<I{len(dims)}Q", len(dims) if n is None else n, *dims)
    return text(name) + dimensions + struct.pack("<IQ", kind, offset)


def model(
    keys: list[bytes] | None = None,
    tensors: list[bytes] | None = None,
    data: int = 128,
    *,
    version: int = 3,
    n_keys: int | None = None,
    n_tensors: int | None = None,
    magic: bytes = b"GGUF",
) -> bytes:
    """A file with an alignment of 32; the defaults make a valid one with one F32 tensor of 32 elements."""
    keys = [string("general.architecture", "llama")] if keys is None else keys
    tensors = [tensor()] if tensors is None else tensors
    out = magic + struct.pack(
        "<IQQ",
        version,
        len(tensors) if n_tensors is None else n_tensors,
        len(keys) if n_keys is None else n_keys,
    )
    out += b"".join(keys) + b"".join(tensors)
    return out + bytes(-len(out) % 32) + bytes(data)


def nested(depth: int) -> bytes:
    start = text("deep") + struct.pack("<I", ARRAY)
    return start + struct.pack("<IQ", ARRAY, 1) * depth + struct.pack("<IQ", U8, 0)


Case = tuple[str, bytes, str]
"""Name, file, what the message must say."""

NOT_GGUF: list[Case] = [
    ("empty", b"", "is empty"),
    ("one byte", b"G", "starts with b'G'"),
    ("another magic", model(magic=b"GGUX"), "b'GGUX' instead of b'GGUF'"),
    ("swapped magic", model(magic=b"FUGG"), "bytes swapped"),
    ("ggml", model(magic=b"lmgg"), "older than GGUF"),
    ("ggjt", model(magic=b"tjgg"), "older than GGUF"),
    ("safetensors", struct.pack("<Q", 40) + b'{"a":{"dtype":"F32"}}' + bytes(40), "safetensors"),
    ("safetensors starting with <", struct.pack("<Q", 0x3C) + b'{"a":{}}' + bytes(80), "safetensors"),
    ("pickle", b"\x80\x02}q\x00(X\x05\x00\x00\x00", "pickle, which is never loaded"),
    ("pickle 5", b"\x80\x05\x95\x00\x00", "pickle"),
    ("zip", b"PK\x03\x04" + bytes(60), "zip archive"),
    ("gzip", b"\x1f\x8b\x08" + bytes(60), "gzip"),
    ("html", b"<!DOCTYPE html><html>", "HTML"),
    ("git-lfs", b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "git lfs pull"),
    ("json", b'{"model_type": "llama"}', "JSON"),
    ("zeros", bytes(100), "never finished"),
]

HEADERS: list[Case] = [
    ("version 0", model(version=0), "version is 0"),
    *[(f"{n} tensors", model(n_tensors=n), f"number of tensors is {n}") for n in HUGE],
    *[(f"{n} keys", model(n_keys=n), f"number of metadata keys is {n}") for n in HUGE],
    ("more tensors than fit", model(n_tensors=60_000), "tensors is 60000, which cannot fit"),
    ("more keys than fit", model(n_keys=60_000), "keys is 60000, which cannot fit"),
    ("a tensor more than there is", model([], n_tensors=2), "name of tensor 1"),
    ("a key more than there is", model([], [], n_keys=1, data=40), "metadata key 0"),
]

KEYS: list[Case] = [
    ("empty key", model([number("", U8, 1)]), "metadata key 0 has a length of 0"),
    ("key of 64 KiB", model([number("k" * 65_536, U8, 1)]), "length of 65536 bytes"),
    *[
        (f"key of {n}", model([text("k", n) + bytes(64)]), f"metadata key 0 has a length of {n}")
        for n in HUGE
    ],
    ("key past the end", model([text("k", 5_000)]), "metadata key 0 needs 5000 bytes"),
    ("key not UTF-8", model([number(b"k\xff", U8, 1)]), r"not valid UTF-8: b'k\\xff'"),
    ("key with a surrogate", model([number(b"\xed\xa0\x80", U8, 1)]), "not valid UTF-8"),
    ("duplicate key", model([number("k", U8, 1), number("k", U8, 1)]), "'k' appears twice"),
    ("duplicate key of two types", model([number("k", U8, 1), string("k", "")]), "'k' appears twice"),
    ("type 13", model([text("k") + struct.pack("<II", 13, 0)]), "type of metadata key 'k' is 13"),
    ("type 2^32-1", model([text("k") + struct.pack("<iI", -1, 0)]), "'k' is 4294967295"),
    ("bool 2", model([number("k", BOOL, 2)]), "'k' is a bool with the value 2"),
    ("bool 255", model([number("k", BOOL, 255)]), "'k' is a bool with the value 255"),
    ("a number cut off", model([text("k") + struct.pack("<I", U64)], [], 0)[:37], "'k' needs 8 bytes"),
    *[(f"string of {n}", model([string("k", "v", n)]), f"'k' is a string of {n}") for n in HUGE],
    ("string past the end", model([string("k", "v", 5_000)]), "'k' needs 5000 bytes"),
    ("string of the whole file", model([string("k", "v", 200)], [], 96), "'k' needs 200 bytes"),
]

ARRAYS: list[Case] = [
    ("item type 13", model([items("k", 13, b"", 0)]), "item type of metadata key 'k' is 13"),
    *[(f"{n} u8 items", model([items("k", U8, b"", n)]), f"'k' is an array of {n} items") for n in HUGE],
    *[
        (f"{n} string items", model([items("k", STRING, b"", n)]), f"'k' is an array of {n} items")
        for n in HUGE
    ],
    *[(f"{n} f64 items", model([items("k", F64, b"", n)]), f"array of {n}") for n in [2**61, 2**60]],
    ("u8 items past the end", model([items("k", U8, b"", 5_000)]), "5000 items in metadata key 'k'"),
    ("u64 items past the end", model([items("k", U64, b"", 100)]), "'k' needs 800 bytes"),
    ("string items past the end", model([items("k", STRING, b"", 100)]), "'k' needs 800 bytes"),
    ("bool items of 2", model([items("k", BOOL, b"\0\1\2", 3)]), "'k' is a bool with the value 2"),
    *[
        (f"string item of {n}", model([items("k", STRING, text("a") + text("b", n), 2)]),
         f"string 1 of metadata key 'k' has {n} bytes")
        for n in HUGE
    ],
    ("string item past the end", model([items("k", STRING, text("a", 4_000), 1)]), "last string of"),
    ("string items that eat the rest", model([items("k", STRING, text("a", 90) + text("b"), 5)], [], 0),
     "length of string 1 of metadata key 'k'"),
]  # fmt: skip

KNOWN_TYPES: list[Case] = [
    (f"{key} as {name}", model([text(key) + value]), f"'{key}' is of type .*, but must be {wanted}")
    for key, name, value, wanted in [
        ("general.architecture", "u32", number("", U32, 1)[8:], "STRING"),
        ("general.alignment", "u64", number("", U64, 32)[8:], "UINT32"),
        ("general.alignment", "string", string("", "32")[8:], "UINT32"),
        ("general.alignment", "array", items("", U32, bytes(4), 1)[8:], "UINT32"),
        ("split.count", "u64", number("", U64, 1)[8:], "UINT16"),
        ("split.no", "i32", number("", I32, 0)[8:], "UINT16"),
        ("split.tensors.count", "f32", number("", F32, 1)[8:], "INT32"),
        ("tokenizer.ggml.tokens", "i32[]", items("", I32, bytes(8), 2)[8:], "array of STRING"),
        ("tokenizer.ggml.tokens", "string", string("", "a")[8:], "array of STRING"),
        ("tokenizer.ggml.merges", "u8[]", items("", U8, b"ab", 2)[8:], "array of STRING"),
        ("tokenizer.ggml.scores", "u8[]", items("", U8, b"ab", 2)[8:], "array of FLOAT32"),
        ("tokenizer.ggml.scores", "f64[]", items("", F64, bytes(16), 2)[8:], "array of FLOAT32"),
        ("tokenizer.ggml.scores", "str[]", items("", STRING, text("1"), 1)[8:], "array of FLOAT32"),
        ("tokenizer.ggml.token_type", "f32[]", items("", F32, bytes(8), 2)[8:], "array of INT32"),
        ("tokenizer.ggml.token_type", "i32", number("", I32, 1)[8:], "array of INT32"),
    ]
]
"""The value is what follows the (here empty) key in an entry."""

ALIGNMENTS: list[Case] = [
    (f"alignment {n}", model([number("general.alignment", U32, n)]), f"'general.alignment' is {n}, but")
    for n in [0, 1, 3, 4, 24, 33, 2**22, 2**31, 2**32 - 1]
]

TENSORS: list[Case] = [
    ("empty name", model(tensors=[tensor("")]), "name of tensor 0 has a length of 0"),
    ("name not UTF-8", model(tensors=[tensor(b"\xc0\x80")]), "name of tensor 0 is not valid UTF-8"),
    *[
        (f"name of {n}", model(tensors=[text("t", n) + bytes(64)]), f"tensor 0 has a length of {n}")
        for n in HUGE
    ],
    ("name of 64 KiB", model(tensors=[tensor("t" * 65_536)]), "length of 65536"),
    ("duplicate name", model(tensors=[tensor(), tensor(offset=128)], data=256), "'t' appears twice"),
    ("no dimensions", model(tensors=[tensor(dims=())]), "'t' has 0 dimensions"),
    ("5 dimensions", model(tensors=[tensor(dims=(32, 1, 1, 1, 1))]), "'t' has 5 dimensions"),
    ("2^32-1 dimensions", model(tensors=[tensor(n=2**32 - 1)]), "'t' has 4294967295 dimensions"),
    ("dimension 0", model(tensors=[tensor(dims=(0,))]), r"'t' has the shape \[0\]: a dimension is 0"),
    ("second dimension 0", model(tensors=[tensor(dims=(32, 0))]), r"\[0, 32\]: a dimension is 0"),
    *[
        (f"dimension {n}", model(tensors=[tensor(dims=(n,))]), rf"'t' of shape \[{n}\] .* needs {4 * n} ")
        for n in [2**31, 2**32, 2**61, 2**62, 2**63, 2**64 - 1]
    ],
    ("product 2^64", model(tensors=[tensor(dims=(2**32, 2**32))]), "needs 73786976294838206464"),
    ("product wraps to 0", model(tensors=[tensor(dims=(2**32, 2**31, 2))]), "'t' of shape"),
    ("product wraps to 32", model(tensors=[tensor(dims=(2**63 + 16, 2))]), "'t' of shape"),
    ("product 2^256", model(tensors=[tensor(dims=(2**63,) * 4)]), "'t' of shape"),
    ("half a block", model(tensors=[tensor(dims=(16,), kind=3)]), "rows of 16 elements, not whole Q4_1"),
    ("rows of one and a half blocks", model(tensors=[tensor(dims=(48, 2), kind=8)]), "rows of 48"),
    ("rows of 32 in a K type", model(tensors=[tensor(dims=(32, 8), kind=12)]), "whole Q4_K blocks of 256"),
    ("offset unaligned", model(tensors=[tensor(offset=1)], data=256), "'t' has the offset 1, not"),
    ("offset aligned to 16", model(tensors=[tensor(offset=16)], data=256), "multiple of the alignment 32"),
    ("offset at the end", model(tensors=[tensor(offset=128)]), "'t' of shape .* needs 128 bytes"),
    ("offset one unit too far", model(tensors=[tensor(offset=32)]), "'t' of shape .* needs 128 bytes"),
    *[
        (f"offset {n}", model(tensors=[tensor(offset=n)]), "'t' of shape .* needs 128 bytes at offset")
        for n in [2**32, 2**63, 2**64 - 32]
    ],
    ("offset wraps to the start", model(tensors=[tensor(offset=2**64 - 64)]), "'t' of shape"),
    ("same offset", model(tensors=[tensor("a"), tensor("b")]), "'b' has the offset 0, .* ends at 128"),
    ("overlap", model(tensors=[tensor("a"), tensor("b", offset=96)], data=256), "'b' has the offset 96"),
    ("decreasing", model(tensors=[tensor("a", offset=128), tensor("b")], data=256), "'b' has the offset 0"),
    ("data missing", model(data=0), "'t' of shape .* needs 128 bytes"),
    ("one byte missing", model(data=127), "'t' of shape .* needs 128 bytes"),
    ("wrong place under alignment 64",
     model([number("general.alignment", U32, 64)], [tensor("a"), tensor("b", offset=32)]), "alignment 64"),
]  # fmt: skip

SPLITS: list[Case] = [
    ("part 2 of 3 by itself", model([number("split.no", U16, 1), number("split.count", U16, 3)]),
     "part 1 of 1 by its name, but 2 of 3"),
    ("first of 3 by itself", model([number("split.count", U16, 3)]), "but 1 of 3"),
    ("more tensors promised", model([number("split.tensors.count", I32, 7)]), "'split.tensors.count' is 7"),
]  # fmt: skip

UNSUPPORTED: list[Case] = [
    ("version 1", model(version=1), "version 1 is not read"),
    ("version 4", model(version=4), "version 4 is not read"),
    ("version 2^32-1", model(version=2**32 - 1), "version 4294967295"),
    ("big-endian 3", model(version=3 << 24), "big-endian"),
    ("big-endian 2", model(version=2 << 24), "big-endian"),
    ("array of arrays", model([nested(1)]), "'deep' is an array of arrays"),
    ("arrays nested 100,000 deep", model([nested(100_000)]), "'deep' is an array of arrays"),
    ("withdrawn type 4", model(tensors=[tensor(kind=4)]), r"'t' is of type 4 \(Q4_2, withdrawn"),
    ("withdrawn type 31", model(tensors=[tensor(kind=31)]), r"type 31 \(Q4_0_4_4"),
    ("unknown type 42", model(tensors=[tensor(kind=42)]), "'t' is of type 42, which is not known"),
    ("type -1", model(tensors=[tensor(kind=2**32 - 1)]), "'t' is of type 4294967295"),
]

MALFORMED = NOT_GGUF + HEADERS + KEYS + ARRAYS + KNOWN_TYPES + ALIGNMENTS + TENSORS + SPLITS
CASES = [(*case, FormatError) for case in MALFORMED] + [(*case, UnsupportedError) for case in UNSUPPORTED]


def written(folder: Path, content: bytes, name: str = "m.gguf") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def test_the_valid_file_that_the_cases_are_made_from_opens(tmp_path: Path) -> None:
    with GGUFFile(written(tmp_path, model())) as file:
        assert file.tensors["t"].shape == (32,)


def test_there_are_many_cases_and_their_names_differ() -> None:
    assert len({name for name, *_ in CASES}) == len(CASES) >= 100


@pytest.mark.parametrize(("content", "message", "error"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_a_malformed_file_is_one_sentence_that_names_the_culprit(
    tmp_path: Path, content: bytes, message: str, error: type[NanollamaError]
) -> None:
    path = written(tmp_path, content)
    with pytest.raises(NanollamaError, match=message) as caught:
        GGUFFile(path)
    assert type(caught.value) is error
    said = str(caught.value)
    assert said.startswith("m.gguf")
    assert str(tmp_path) not in said
    assert "\n" not in said
    assert len(said) < 500


def test_a_file_cut_at_any_byte_of_the_header_or_data_is_refused(tmp_path: Path) -> None:
    whole = model(
        [
            string("general.architecture", "llama"),
            number("general.alignment", U32, 32),
            items("tokenizer.ggml.tokens", STRING, text("a") + text("") + text("héllo"), 3),
            items("tokenizer.ggml.scores", F32, bytes(12), 3),
            number("flag", BOOL, 1),
            number("big", F64, 1.5),
        ],
        [tensor("a", (32, 2), 3), tensor("b", (8,), offset=64)],
        data=96,
    )
    with GGUFFile(written(tmp_path, whole)) as file:
        assert len(file.tensors) == 2
    for length in range(len(whole)):
        path = written(tmp_path, whole[:length], "cut.gguf")
        with pytest.raises(FormatError, match=r"^cut\.gguf") as caught:
            GGUFFile(path)
        assert re.search(r"empty|starts with b'GG?U?'|needs \d+ bytes|cannot fit", str(caught.value))


def test_all_malformed_files_together_stay_within_a_small_budget_of_time_and_memory(tmp_path: Path) -> None:
    """A file of a few bytes must not make the reader allocate what it claims, nor run for long."""
    for index, (_, content, _, _) in enumerate(CASES):
        written(tmp_path, content, f"{index:03}.gguf")
    script = """
import json, resource, sys, tracemalloc
from pathlib import Path
from nanollama.errors import NanollamaError
from nanollama.formats.gguf import GGUFFile
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + (256 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
resource.setrlimit(resource.RLIMIT_CPU, (5, 5))
tracemalloc.start()
worst = 0
outcomes = []
for path in sorted(Path(sys.argv[1]).glob("*.gguf")):
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    try:
        GGUFFile(path)
        outcomes.append("opened")
    except NanollamaError as error:
        outcomes.append(type(error).__name__)
    worst = max(worst, tracemalloc.get_traced_memory()[1] - before - path.stat().st_size)
heavy = [name for name in ("numpy", "torch", "tokenizers", "jinja2", "rich") if name in sys.modules]
print(json.dumps({"outcomes": outcomes, "worst": worst, "heavy": heavy}))
"""
    if not Path("/proc/self/statm").exists():
        pytest.skip("the memory budget is measured through /proc, which this system has not")
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=True
    )
    result = json.loads(done.stdout)
    assert result["outcomes"] == [error.__name__ for *_, error in CASES]
    assert result["worst"] < 1 << 20
    assert result["heavy"] == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (model([string("k", "", 17 << 20)], [], 0), "string of 17825792 bytes"),
        (model([items("k", U8, b"", 17 << 20)], [], 0), "array of 17825792 items"),
        (model([items("k", STRING, b"", 5 << 20)], [], 0), "array of 5242880 strings"),
        (
            model(
                [items("k", STRING, bytes(8 * (3 << 20)), 3 << 20), items("l", STRING, b"", 3 << 20)], [], 0
            ),
            "'l' is an array of 3145728 strings, but a header may have 4194304",
        ),
        (model([], [], 0, n_keys=65_537), "number of metadata keys is 65537, but at most 65536"),
        (model([], [], 0, n_tensors=65_537), "number of tensors is 65537, but at most 65536"),
    ],
)
def test_a_limit_holds_also_where_a_sparse_file_is_large_enough(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = written(tmp_path, content)
    os.truncate(path, 1 << 30)
    with pytest.raises(FormatError, match=message):
        GGUFFile(path)


UNUSUAL = {
    "trailing bytes": model(data=4_000),
    "holes": model(tensors=[tensor("a", offset=64), tensor("b", offset=256)], data=512),
    "no final padding": model(tensors=[tensor("odd", (5,))], data=20),
    "nothing in it": model([], [], 0),
    "odd strings": model([string("k", b"\xff\xfe"), string("e", ""), items("s", STRING, b"", 0)]),
    "alignment 8": model([number("general.alignment", U32, 8)]),
    "merged": model([number("split.count", U16, 0), number("split.no", U16, 0)]),
    "version 2": model(version=2),
    "as many strings as allowed": model([items("k", STRING, bytes(8 * MAX_STRINGS), MAX_STRINGS)]),
}


@pytest.mark.parametrize("content", UNUSUAL.values(), ids=list(UNUSUAL))
def test_unusual_but_well_formed_files_open(tmp_path: Path, content: bytes) -> None:
    with GGUFFile(written(tmp_path, content)) as file:
        for tensor_info in file.tensors.values():
            assert file.data(tensor_info.name).nbytes == tensor_info.nbytes
        for key in file.metadata:
            assert file.metadata[key] is not None
