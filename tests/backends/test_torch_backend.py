"""The recipe over torch against the slowest correct decoder: cached, chunked, batched, it changes nothing."""

import numpy as np
import pytest
import torch

from nanollama import reference
from nanollama.backends.ops import ModelInput, SequenceInput
from nanollama.backends.torch_backend import BLOCK_TOKENS, TorchBackend, choose_device
from nanollama.errors import BackendError, FormatError
from nanollama.model.weights import load_weights
from toys import SPECS, VOCAB, Toy, make_toy

N = 75  # more than two blocks, more than ten sliding windows


def ids_of(seed: int, n: int = N) -> tuple[int, ...]:
    return tuple(int(i) for i in np.random.default_rng(seed).integers(0, VOCAB, n))


def backend_of(toy: Toy, dtype: str = "float32", cache_tokens: int = 512) -> TorchBackend:
    return TorchBackend(toy.spec, toy.tensors, device="cpu", dtype=dtype, cache_tokens=cache_tokens)


def reference_logits(toy: Toy, ids: tuple[int, ...]) -> np.ndarray:
    params = {name: torch.from_numpy(array) for name, array in toy.arrays.items()}
    return reference.logits(toy.spec, params, ids).numpy()


def whole(ids: tuple[int, ...], table: tuple[int, ...] = (0, 1, 2)) -> ModelInput:
    return ModelInput(ids, (SequenceInput(len(ids), 0, table),), tuple(range(len(ids))))


@pytest.fixture(params=SPECS)
def toy(request: pytest.FixtureRequest) -> Toy:
    return make_toy(request.param)


def test_the_recipe_equals_the_reference(toy: Toy) -> None:
    ids = ids_of(1)
    assert np.abs(backend_of(toy).step(whole(ids)) - reference_logits(toy, ids)).max() < 1e-4


@pytest.mark.parametrize("chunk", [1, 7, 32, 40])
def test_chunked_and_cached_equals_whole(toy: Toy, chunk: int) -> None:
    ids, backend = ids_of(2), backend_of(toy)
    expected = backend.step(whole(ids))
    table = (4, 9, 1)  # blocks need not lie in order
    rows = []
    for start in range(0, N, chunk):
        part = ids[start : start + chunk]
        sequence = SequenceInput(len(part), start, table[: -(-(start + len(part)) // BLOCK_TOKENS)])
        rows.append(backend.step(ModelInput(part, (sequence,), tuple(range(len(part))))))
    assert np.abs(np.concatenate(rows) - expected).max() < 1e-4


def test_a_mixed_batch_equals_each_sequence_alone(toy: Toy) -> None:
    """Two decoding sequences, one in the middle of its prompt and one at its start, in one step."""
    backend = backend_of(toy)
    prompts = [ids_of(seed, n) for seed, n in ((3, 40), (4, 70), (5, 50), (6, 20))]
    cached = [39, 69, 33, 0]
    tables = [(7, 3), (0, 2, 5), (6, 1), (4,)]
    for ids, n, table in zip(prompts, cached, tables, strict=True):
        if n:
            backend.step(ModelInput(ids[:n], (SequenceInput(n, 0, table),), ()))
    sequences = tuple(
        SequenceInput(len(p) - n, n, t) for p, n, t in zip(prompts, cached, tables, strict=True)
    )
    new = tuple(i for p, n in zip(prompts, cached, strict=True) for i in p[n:])
    ends = np.cumsum([s.n_new for s in sequences]) - 1
    logits = backend.step(ModelInput(new, sequences, tuple(int(e) for e in ends)))
    expected = np.stack([reference_logits(toy, p)[-1] for p in prompts])
    assert np.abs(logits - expected).max() < 1e-4


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_stays_near_float32(toy: Toy, dtype: str) -> None:
    ids = ids_of(7)
    expected = reference_logits(toy, ids)
    errors = np.abs(backend_of(toy, dtype).step(whole(ids)) - expected).max(axis=1)
    # A router that is nearly undecided may choose another expert: that changes a row, and few rows.
    worst = errors.max() if toy.spec.mlp.experts is None else np.median(errors)
    error = worst / np.abs(expected).max()
    assert 0 < error < (0.01 if dtype == "float16" else 0.08)


def test_only_the_asked_rows_are_returned(toy: Toy) -> None:
    ids, backend = ids_of(8), backend_of(toy)
    everything = backend.step(whole(ids))
    some = backend.step(ModelInput(ids, (SequenceInput(N, 0, (0, 1, 2)),), (3, 74)))
    assert some.shape == (2, VOCAB)
    assert np.abs(some - everything[[3, 74]]).max() < 1e-5


def test_a_missing_parameter_is_named(toy: Toy) -> None:
    tensors = toy.tensors
    del tensors["model.layers.1.self_attn.o_proj.weight"]
    with pytest.raises(FormatError, match=r"model\.layers\.1\.self_attn\.o_proj\.weight"):
        TorchBackend(toy.spec, tensors, device="cpu", dtype="float32", cache_tokens=32)


def test_a_tensor_that_nothing_uses_is_named(toy: Toy) -> None:
    tensors = toy.tensors | {"model.layers.9.extra.weight": toy.tensors["model.norm.weight"]}
    with pytest.raises(FormatError, match=r"model\.layers\.9\.extra\.weight"):
        TorchBackend(toy.spec, tensors, device="cpu", dtype="float32", cache_tokens=32)


def test_a_tensor_of_the_wrong_shape_is_named(toy: Toy) -> None:
    tensors = toy.tensors | {"model.norm.weight": toy.tensors["model.embed_tokens.weight"]}
    with pytest.raises(FormatError, match=r"model\.norm\.weight has shape \[61, "):
        TorchBackend(toy.spec, tensors, device="cpu", dtype="float32", cache_tokens=32)


def test_each_tensor_is_read_once(toy: Toy) -> None:
    """Loading must not decode a tensor twice, nor keep the file's bytes."""

    class CountingPacker:
        def __init__(self) -> None:
            self.names: list[str] = []

        def matrix(self, parts: list, biases: list) -> None:
            self.names += [t.name for t in [*parts, *biases]]

        def experts(self, experts: list, biases: list) -> None:
            for parts in [*experts, *biases]:
                self.names += [t.name for t in parts]

        def vector(self, tensor: object) -> None:
            self.names.append(tensor.name)

        def embedding(self, tensor: object, *, is_head: bool) -> None:
            self.names.append(tensor.name)

    packer = CountingPacker()
    load_weights(toy.spec, toy.tensors, packer)
    assert sorted(packer.names) == sorted(toy.arrays)


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(BackendError, match="available: cpu"):
        choose_device("tpu")
