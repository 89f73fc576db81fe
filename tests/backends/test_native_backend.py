"""The tape against the torch backend: the same recipe, recorded and replayed, in every kind of step."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
from torch import Tensor

from nanollama.backends.native.backend import NativeBackend, check_supported
from nanollama.backends.native.kv_cache import BLOCK_TOKENS, PagedCache, wants_float32
from nanollama.backends.native.library import Library
from nanollama.backends.native.locate import find_library
from nanollama.backends.native.memory import Arena
from nanollama.backends.ops import ModelInput, SequenceInput
from nanollama.backends.torch_backend import TorchBackend
from nanollama.backends.torch_cache import TorchCache
from nanollama.errors import BackendError, UnsupportedError
from nanollama.model.checkpoint import PackedTensor
from nanollama.model.spec import ExpertsSpec
from nanollama.quant.formats import FORMATS
from toys import SPECS, VOCAB, Toy, make_toy, packed

N = 300  # more than one span of attention, and more than one tile of rows


@pytest.fixture(scope="module")
def library() -> Library:
    try:
        return Library(find_library())
    except BackendError as error:
        pytest.skip(str(error))


def native(toy: Toy, library: Library, threads: int = 2, variant: str | None = None) -> NativeBackend:
    return NativeBackend(
        toy.spec, toy.tensors, library=library, threads=threads, cache_tokens=1024, variant=variant
    )


CLOSE = {"F32": 1e-5, "F16": 1e-3}
"""To torch in float32, by the type of the matrices: only where all of them are float32, keys and values are
too. In float16 each is off by up to 0.05 %.
"""
KINDS = [(kind, "F32") for kind in SPECS] + [(kind, "F16") for kind in ("llama", "gemma3", "gpt_oss")]


@pytest.fixture(params=KINDS, ids=", ".join)
def toy(request: pytest.FixtureRequest) -> Toy:
    kind, matrices = request.param
    return make_toy(kind, matrices=matrices)


@pytest.fixture
def backend(toy: Toy, library: Library) -> Iterator[NativeBackend]:
    backend = native(toy, library)
    yield backend
    backend.close()


def ids_of(seed: int, n: int = N) -> tuple[int, ...]:
    return tuple(int(i) for i in np.random.default_rng(seed).integers(0, VOCAB, n))


def blocks(n_tokens: int, first: int = 0) -> tuple[int, ...]:
    return tuple(range(first, first - (-n_tokens // BLOCK_TOKENS)))


def whole(ids: tuple[int, ...]) -> ModelInput:
    return ModelInput(ids, (SequenceInput(len(ids), 0, blocks(len(ids))),), tuple(range(len(ids))))


def torch_logits(toy: Toy, ids: tuple[int, ...]) -> np.ndarray:
    return TorchBackend(toy.spec, toy.tensors, device="cpu", dtype="float32", cache_tokens=1024).step(
        whole(ids)
    )


def relative_error(x: np.ndarray, expected: np.ndarray) -> float:
    """Root of the mean squared error, relative to the size of what was expected."""
    return float(np.sqrt(np.mean((x - expected) ** 2) / np.mean(expected**2)))


def test_the_tape_equals_torch(toy: Toy, backend: NativeBackend) -> None:
    ids = ids_of(1)
    assert relative_error(backend.step(whole(ids)), torch_logits(toy, ids)) < CLOSE[toy.matrices]


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_a_half_precision_cache_rounds_keys_and_values_and_nothing_else(
    kind: str, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch with rounded keys and values is its twin, but for those on the edge between two halves."""
    toy, ids = make_toy(kind, matrices="F16"), ids_of(17, 100)
    backend = native(toy, library)
    logits = backend.step(whole(ids)).copy()
    backend.close()
    exact = torch_logits(toy, ids)
    store = TorchCache.store

    def store_rounded(cache: TorchCache, index: int, slots: Tensor, k: Tensor, v: Tensor) -> None:
        store(cache, index, slots, k.half().float(), v.half().float())

    monkeypatch.setattr(TorchCache, "store", store_rounded)
    twin = TorchBackend(toy.spec, toy.tensors, device="cpu", dtype="float32", cache_tokens=128)
    rounded = [
        twin.step(ModelInput(ids[i : i + 1], (SequenceInput(1, i, blocks(i + 1)),), (0,)))[0]
        for i in range(len(ids))
    ]
    assert relative_error(logits, np.stack(rounded)) < 1e-4
    assert relative_error(logits, exact) > 2e-4


@pytest.mark.parametrize(
    ("stored", "width"),
    [({}, 4), ({"q_proj": "F16"}, 2), ({"embed_tokens": "BF16"}, 2)],
)
def test_keys_and_values_are_float32_where_all_matrices_are(
    stored: dict[str, str], width: int, library: Library
) -> None:
    toy = make_toy("llama of odd sizes")
    tensors = dict(toy.tensors)
    for name, tensor in toy.tensors.items():
        for part, type_name in stored.items():
            if part in name:
                tensors[name] = quantized(tensor, type_name)
    assert wants_float32(tensors.values()) == (width == 4)
    arena = Arena(library, huge_pages=False)
    cache = PagedCache(arena, toy.spec, 3, is_float32=width == 4)
    a = toy.spec.attention
    assert cache.token_bytes == 2 * toy.spec.num_layers * a.num_kv_heads * 16 * width, "heads of 10, padded"
    assert {layer.is_float32 for layer in cache.layers} == {width == 4}
    arena.close()


@pytest.mark.parametrize("matrices", CLOSE)
def test_a_copied_block_is_the_same_in_all_layers_and_its_neighbours_stay(
    matrices: str, library: Library
) -> None:
    toy = make_toy("llama", matrices=matrices)
    backend = native(toy, library)
    ids, other = ids_of(18, BLOCK_TOKENS), ids_of(19, BLOCK_TOKENS)
    for block, tokens in ((4, ids), (6, other), (8, other), (9, ids)):
        backend.step(ModelInput(tokens, (SequenceInput(len(tokens), 0, (block,)),), ()))

    def last(tokens: tuple[int, ...], block: int, copies: tuple[tuple[int, int], ...] = ()) -> np.ndarray:
        n = len(tokens) - 1
        return backend.step(ModelInput(tokens[n:], (SequenceInput(1, n, (block,)),), (0,), copies)).copy()

    expected, expected_other = last(ids, 9), last(other, 6)
    assert np.array_equal(last(ids, 7, ((4, 7),)), expected)
    assert np.array_equal(last(other, 8), expected_other)
    assert np.array_equal(last(other, 6), expected_other)
    backend.close()


@pytest.mark.parametrize("chunk", [1, 5, 33, 256])
def test_chunks_do_not_change_a_bit(toy: Toy, backend: NativeBackend, chunk: int) -> None:
    ids = ids_of(2)
    expected = backend.step(whole(ids)).copy()
    table = tuple(reversed(range(20, 20 + len(blocks(N)))))
    rows = []
    for start in range(0, N, chunk):
        part = ids[start : start + chunk]
        sequence = SequenceInput(len(part), start, table[: len(blocks(start + len(part)))])
        rows.append(backend.step(ModelInput(part, (sequence,), tuple(range(len(part))))).copy())
    assert np.array_equal(np.concatenate(rows), expected)


def test_a_crowd_does_not_change_a_bit(toy: Toy, backend: NativeBackend) -> None:
    """Decoding sequences, one within its prompt and one at its start, in one step, against each alone."""
    prompts = [ids_of(seed, n) for seed, n in ((3, 290), (4, 270), (5, 50), (6, 20), (7, 1))]
    cached = [289, 269, 33, 0, 0]
    alone = [backend.step(whole(ids))[-1].copy() for ids in prompts]
    tables, first = [], 0
    for ids in prompts:
        tables.append(blocks(len(ids), first))
        first += len(tables[-1])
    for ids, n, table in zip(prompts, cached, tables, strict=True):
        if n:
            backend.step(ModelInput(ids[:n], (SequenceInput(n, 0, table),), ()))
    sequences = tuple(
        SequenceInput(len(p) - n, n, t) for p, n, t in zip(prompts, cached, tables, strict=True)
    )
    new = tuple(i for p, n in zip(prompts, cached, strict=True) for i in p[n:])
    last_rows = tuple(int(row) - 1 for row in np.cumsum([s.n_new for s in sequences]))
    assert np.array_equal(backend.step(ModelInput(new, sequences, last_rows)), np.stack(alone))


@pytest.mark.parametrize("threads", [1, 3, 7])
def test_threads_do_not_change_a_bit(
    toy: Toy, backend: NativeBackend, library: Library, threads: int
) -> None:
    ids = ids_of(8)
    expected = backend.step(whole(ids)).copy()
    other = native(toy, library, threads=threads)
    assert np.array_equal(other.step(whole(ids)), expected)
    other.close()


@pytest.mark.parametrize("matrices", CLOSE)
@pytest.mark.parametrize("kind", ["gemma3", "gpt_oss", "rows normed, of odd sizes"])
def test_every_variant_this_processor_runs_agrees(kind: str, matrices: str, library: Library) -> None:
    toy, ids = make_toy(kind, matrices=matrices), ids_of(9)
    expected = torch_logits(toy, ids)
    for variant in library.variants():
        backend = native(toy, library, variant=variant)
        assert relative_error(backend.step(whole(ids)), expected) < CLOSE[matrices], variant
        backend.close()


def quantized(tensor: PackedTensor, type_name: str) -> PackedTensor:
    """A matrix in a block format, by the gguf package's quantizer."""
    data = gguf.quants.quantize(tensor.float32(), gguf.GGMLQuantizationType[type_name]).tobytes()
    return PackedTensor(tensor.name, FORMATS[type_name], tensor.shape, lambda: memoryview(data))


@pytest.mark.parametrize("type_name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16", "BF16"])
@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_quantized_weights_stay_near_torch(kind: str, type_name: str, library: Library) -> None:
    """The weights are the same; the native backend rounds activations to 8 bits, an error near 1 %."""
    toy, ids = make_toy(kind), ids_of(10)
    tensors = {name: quantized(t, type_name) if len(t.shape) == 2 else t for name, t in toy.tensors.items()}
    backend = NativeBackend(toy.spec, tensors, library=library, threads=2, cache_tokens=512)
    ours = backend.step(whole(ids)).copy()
    backend.close()
    theirs = TorchBackend(toy.spec, tensors, device="cpu", dtype="float32", cache_tokens=512).step(whole(ids))
    assert relative_error(ours, theirs) < (2e-3 if type_name in ("F16", "BF16") else 0.05)


def test_matrices_that_share_their_input_may_differ_in_type(library: Library) -> None:
    toy, ids = make_toy("llama"), ids_of(11)
    tensors = toy.tensors
    for name, type_name in (
        ("q_proj", "Q5_0"),
        ("v_proj", "Q8_0"),
        ("up_proj", "Q4_1"),
        ("gate_proj", "F16"),
    ):
        for i in range(toy.spec.num_layers):
            full = next(n for n in tensors if n.startswith(f"model.layers.{i}.") and f".{name}." in n)
            tensors[full] = quantized(tensors[full], type_name)
    backend = NativeBackend(toy.spec, tensors, library=library, threads=2, cache_tokens=512)
    ours = backend.step(whole(ids)).copy()
    backend.close()
    theirs = TorchBackend(toy.spec, tensors, device="cpu", dtype="float32", cache_tokens=512).step(whole(ids))
    assert relative_error(ours, theirs) < 0.05


def experts_toy(per_token: int) -> Toy:
    """Four experts, each token to ``per_token`` of them."""
    toy = make_toy("experts")
    mlp = replace(toy.spec.mlp, experts=ExpertsSpec(count=4, per_token=per_token))
    arrays = {name: array for name, array in toy.arrays.items() if ".experts.4." not in name}
    for name in [name for name in arrays if name.endswith("mlp.gate.weight")]:
        arrays[name] = arrays[name][:4].copy()
    return Toy(replace(toy.spec, mlp=mlp), arrays)


@pytest.mark.parametrize("type_name", ["Q4_0", "Q8_0", "MXFP4", "F16"])
def test_quantized_experts_stay_near_torch(type_name: str, library: Library) -> None:
    """Each token goes to all of them: which are the best may change with rounding."""
    toy, ids = experts_toy(per_token=4), ids_of(13)
    tensors = {name: quantized(t, type_name) if ".experts." in name else t for name, t in toy.tensors.items()}
    backend = NativeBackend(toy.spec, tensors, library=library, threads=2, cache_tokens=512)
    ours = backend.step(whole(ids)).copy()
    assert backend.decoded == []
    backend.close()
    theirs = TorchBackend(toy.spec, tensors, device="cpu", dtype="float32", cache_tokens=512).step(whole(ids))
    assert relative_error(ours, theirs) < (2e-3 if type_name == "F16" else 0.03)


def test_experts_may_differ_in_type(library: Library) -> None:
    """Where some multiply floats and others can't, all are decoded and said to be."""
    toy, ids = experts_toy(per_token=4), ids_of(14)
    tensors = toy.tensors
    for i in range(toy.spec.num_layers):
        for expert, type_name in ((0, "Q8_0"), (1, "F16"), (2, "Q5_0")):
            name = f"model.layers.{i}.mlp.experts.{expert}.down_proj.weight"
            tensors[name] = quantized(tensors[name], type_name)
        for expert, type_name in enumerate(("Q8_0", "Q4_1", "Q5_0", "Q4_0")):
            for part in ("gate", "up"):
                name = f"model.layers.{i}.mlp.experts.{expert}.{part}_proj.weight"
                tensors[name] = quantized(tensors[name], type_name)
    backend = NativeBackend(toy.spec, tensors, library=library, threads=2, cache_tokens=512)
    ours = backend.step(whole(ids)).copy()
    assert backend.decoded == [
        f"model.layers.{i}.mlp.experts.{expert}.down_proj.weight"
        for i in range(toy.spec.num_layers)
        for expert in range(3)
    ]
    backend.close()
    theirs = TorchBackend(toy.spec, tensors, device="cpu", dtype="float32", cache_tokens=512).step(whole(ids))
    assert relative_error(ours, theirs) < 0.05


def test_of_equally_good_experts_the_first_are_taken(library: Library) -> None:
    def logits(changed: int | None) -> np.ndarray:
        toy = experts_toy(per_token=2)
        for name, array in toy.arrays.items():
            if name.endswith("mlp.gate.weight"):
                array[:] = 0
            if changed is not None and f".experts.{changed}." in name:
                array *= 2
        backend = native(toy, library)
        found = backend.step(whole(ids_of(15))).copy()
        backend.close()
        return found

    expected = logits(None)
    assert [np.array_equal(logits(expert), expected) for expert in range(4)] == [False, False, True, True]


def test_decoding_reads_the_chosen_experts_only(library: Library) -> None:
    sizes = []
    for per_token in (1, 2, 4):
        toy = experts_toy(per_token)
        backend = native(toy, library)
        sizes.append(backend.read_bytes)
        backend.close()
    inner, hidden = toy.spec.mlp.intermediate_size, toy.spec.hidden_size
    each = toy.spec.num_layers * 3 * inner * hidden * 4
    assert (sizes[1] - sizes[0], sizes[2] - sizes[1]) == (each, 2 * each)


@pytest.mark.parametrize(
    ("sizes", "what"),
    [
        ({"head_dim": 528}, "heads of 528 dimensions, more than 512"),
        ({"num_heads": 258}, "129 query heads for each key-value head, more than 128"),
    ],
)
def test_what_has_no_code_is_refused_by_name(sizes: dict[str, int], what: str) -> None:
    spec = make_toy("llama").spec
    with pytest.raises(UnsupportedError, match=f"no code for {what}; the torch backend has"):
        check_supported(replace(spec, attention=replace(spec.attention, **sizes)))


def test_a_timed_step_accounts_for_every_kind_of_record(backend: NativeBackend) -> None:
    times = backend.step_timed(whole(ids_of(12)))
    assert {kind.name for kind, ns in times.items() if ns} >= {
        "EMBED",
        "NORM",
        "MATMUL",
        "ATTEND",
        "ACTIVATE",
    }


def test_embedding_rows_come_out_as_they_went_in(library: Library) -> None:
    toy = make_toy("llama")
    table = toy.arrays["model.embed_tokens.weight"]
    toy.arrays["model.embed_tokens.weight"] = table[::-1].copy()
    changed = native(toy, library).step(whole((VOCAB - 1 - 5, VOCAB - 1 - 6)))
    assert not np.array_equal(table[0], table[-1])
    original = native(make_toy("llama"), library).step(whole((5, 6)))
    assert np.array_equal(changed, original)


@pytest.mark.model
def test_torch_is_not_imported_on_the_way_to_an_answer(smollm2_path: Path) -> None:
    code = (
        "import sys\n"
        "from nanollama.cli.main import main\n"
        f"main(['run', {str(smollm2_path)!r}, 'Hi', '--max-tokens', '4', '--backend', 'native'])\n"
        "heavy = {'torch', 'transformers'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_toys_pack_their_arrays() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert np.array_equal(packed("x", array).float32(), array)
