"""Every architecture against transformers: what it saves, we open, and the logits are the same."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from checkpoints import CASES, VOCAB, Saved, make, opened
from nanollama import reference
from nanollama.backends.native.backend import NativeBackend
from nanollama.backends.native.library import Library
from nanollama.backends.native.locate import find_library
from nanollama.backends.ops import Backend, ModelInput, SequenceInput
from nanollama.backends.torch_backend import TorchBackend
from nanollama.model.checkpoint import PackedTensor
from nanollama.model.spec import ModelSpec

N = 50  # more than one block, more than seven windows
CLOSE = 1e-4


def ids_of(seed: int, n: int = N) -> tuple[int, ...]:
    return tuple(int(i) for i in np.random.default_rng(seed).integers(0, VOCAB, n))


@pytest.fixture(scope="module", params=CASES)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return make(request.param, tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def ours(saved: Saved) -> tuple[ModelSpec, dict[str, PackedTensor]]:
    return opened(saved.config, saved.arrays)


@pytest.fixture(scope="module", params=["torch", "native"])
def backend(
    request: pytest.FixtureRequest, ours: tuple[ModelSpec, dict[str, PackedTensor]]
) -> Iterator[Backend]:
    """With float32 matrices both have float32 caches."""
    backend: Backend
    if request.param == "torch":
        backend = TorchBackend(*ours, device="cpu", dtype="float32", cache_tokens=512)
    else:
        backend = NativeBackend(*ours, library=Library(find_library()), threads=2, cache_tokens=512)
    yield backend
    backend.close()


def step(backend: Backend, ids: tuple[int, ...], n_cached: int, table: tuple[int, ...]) -> np.ndarray:
    table = table[: -(-(n_cached + len(ids)) // backend.block_tokens)]
    sequence = SequenceInput(len(ids), n_cached, table)
    return backend.step(ModelInput(ids, (sequence,), tuple(range(len(ids))))).copy()


def test_the_reference_equals_transformers(
    saved: Saved, ours: tuple[ModelSpec, dict[str, PackedTensor]]
) -> None:
    spec, tensors = ours
    params = {name: torch.from_numpy(tensor.float32()) for name, tensor in tensors.items()}
    ids = ids_of(1)
    assert np.abs(reference.logits(spec, params, ids).numpy() - saved.logits(ids)).max() < CLOSE


def test_the_recipe_equals_transformers(saved: Saved, backend: Backend) -> None:
    ids = ids_of(1)
    assert np.abs(step(backend, ids, 0, (0, 1)) - saved.logits(ids)).max() < CLOSE


def test_cached_equals_transformers(saved: Saved, backend: Backend) -> None:
    ids, table = ids_of(2), (3, 1)
    rows = [step(backend, ids[:20], 0, table), step(backend, ids[20:45], 20, table)]
    rows += [step(backend, ids[i : i + 1], i, table) for i in range(45, N)]
    assert np.abs(np.concatenate(rows) - saved.logits(ids)).max() < CLOSE


def test_a_batch_with_different_contexts_equals_transformers(saved: Saved, backend: Backend) -> None:
    prompts = [ids_of(seed, n) for seed, n in ((3, 40), (4, 9), (5, 50), (6, 20))]
    cached, tables = [39, 8, 33, 0], [(7, 3), (0,), (6, 1), (4,)]
    for ids, n, table in zip(prompts, cached, tables, strict=True):
        if n:
            step(backend, ids[:n], 0, table)
    sequences = tuple(
        SequenceInput(len(p) - n, n, t) for p, n, t in zip(prompts, cached, tables, strict=True)
    )
    new = tuple(i for p, n in zip(prompts, cached, strict=True) for i in p[n:])
    ends = tuple(int(end) for end in np.cumsum([s.n_new for s in sequences]) - 1)
    expected = np.stack([saved.logits(p)[-1] for p in prompts])
    assert np.abs(backend.step(ModelInput(new, sequences, ends)) - expected).max() < CLOSE


@pytest.mark.parametrize(
    ("case", "n"),
    [
        ("phi3, longrope", 100),
        ("llama, dynamic rope", 65),
        ("llama, dynamic rope", 100),
        ("llama, dynamic rope", 128),
    ],
)
def test_a_long_window_has_other_frequencies(case: str, n: int, tmp_path: Path) -> None:
    """Both cases were trained on 64 tokens. transformers takes the frequencies of the sequence's length, we
    those of the window's, so that a prompt as long as the window has the same ones.
    """
    saved = make(case, tmp_path)
    spec, tensors = opened(saved.config, saved.arrays)
    assert spec.for_context(64).layers[0].rope != spec.for_context(65).layers[0].rope
    long = TorchBackend(spec.for_context(n), tensors, device="cpu", dtype="float32", cache_tokens=128)
    ids = ids_of(7, n)
    assert np.abs(step(long, ids, 0, (0, 1, 2, 3)) - saved.logits(ids)).max() < CLOSE


@pytest.mark.parametrize("n_ctx", [32, 64])
@pytest.mark.parametrize("case", ["phi3, longrope", "llama, dynamic rope"])
def test_a_window_within_the_trained_one_has_the_trained_frequencies(
    case: str, n_ctx: int, tmp_path: Path
) -> None:
    saved = make(case, tmp_path)
    spec, tensors = opened(saved.config, saved.arrays)
    backend = TorchBackend(spec.for_context(n_ctx), tensors, device="cpu", dtype="float32", cache_tokens=64)
    ids, table = ids_of(8, n_ctx), (1, 0)
    rows = [step(backend, ids[:20], 0, table)]
    rows += [step(backend, ids[i : i + 1], i, table) for i in range(20, n_ctx)]
    assert np.abs(np.concatenate(rows) - saved.logits(ids)).max() < CLOSE


def test_dynamic_scaling_leaves_a_cached_key_as_it_was_turned(tmp_path: Path) -> None:
    """transformers chooses anew at each length and keeps the keys: a prompt continued token by token past the
    trained window gets other logits there than the same tokens at once. Ours are those of a window's length,
    however they come.
    """
    saved = make("llama, dynamic rope", tmp_path)
    spec, tensors = opened(saved.config, saved.arrays)
    n = 100
    backend = TorchBackend(spec.for_context(n), tensors, device="cpu", dtype="float32", cache_tokens=128)
    ids, table = ids_of(9, n), (0, 1, 2, 3)
    rows = [step(backend, ids[:60], 0, table)]
    rows += [step(backend, ids[i : i + 1], i, table) for i in range(60, n)]
    assert np.abs(np.concatenate(rows) - saved.logits(ids)).max() < CLOSE
    with torch.inference_mode():
        first = saved.model(torch.tensor([ids[:60]]), use_cache=True)
        for i in range(60, n):
            first = saved.model(
                torch.tensor([ids[i : i + 1]]), past_key_values=first.past_key_values, use_cache=True
            )
    assert np.abs(first.logits[0, -1].numpy() - saved.logits(ids)[-1]).max() > 100 * CLOSE
