"""Weights on a torch device: packed ones are the numbers that quant/ decodes, experts may go any way."""

from dataclasses import replace
from math import prod

import numpy as np
import pytest
import torch

from nanollama.backends import torch_experts, torch_weights
from nanollama.backends.ops import ModelInput, SequenceInput
from nanollama.backends.torch_backend import TorchBackend
from nanollama.backends.torch_decode import DECODERS
from nanollama.backends.torch_weights import WIDENED_ROWS, DenseWeight, PackedWeight, TorchPacker
from nanollama.model.checkpoint import PackedTensor
from nanollama.model.random_weights import random_tensors
from nanollama.model.requantize import requantized
from nanollama.model.shapes import shape_spec
from nanollama.model.spec import ExpertsSpec
from nanollama.quant.decode import dequantize
from nanollama.quant.formats import FORMATS
from toys import packed

CPU = torch.device("cpu")


def tensor_of(name: str, rows: int, columns: int, seed: int = 0) -> PackedTensor:
    """Random bytes; scales that are not finite are left out."""
    fmt = FORMATS[name]
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 256, (rows * columns // fmt.block_size, fmt.block_bytes), np.uint8)
    for offset in {"Q6_K": (208,), "Q4_0": (0,), "Q5_0": (0,), "Q8_0": (0,)}.get(name, (0, 2)):
        scales = random.normal(0, 0.01, len(blocks)).astype("<f2")
        blocks[:, offset : offset + 2] = scales.view(np.uint8).reshape(-1, 2)
    return PackedTensor("w", fmt, (rows, columns), lambda: memoryview(blocks).cast("B"))


@pytest.mark.parametrize("name", DECODERS)
def test_packed_weights_decode_to_the_same_numbers(name: str) -> None:
    tensor = tensor_of(name, 6, 512)
    blocks = torch.tensor(tensor.packed()).view(-1, tensor.fmt.block_bytes)
    expected = dequantize(tensor.fmt, tensor.packed().reshape(-1), tensor.shape)
    np.testing.assert_array_equal(DECODERS[name](blocks).view(6, 512).numpy(), expected)


@pytest.mark.parametrize("name", DECODERS)
def test_packed_matrices_multiply_and_look_up_as_decoded_ones(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nanollama.backends.torch_weights.PIECE", 3 * 512)
    parts = [tensor_of(name, 5, 512, 1), tensor_of(name, 3, 512, 2)]
    biases = [packed("b", np.full(5, 0.5, np.float32)), packed("b", np.zeros(3, np.float32))]
    kept = TorchPacker(CPU, torch.float32, keep_packed=True).matrix(parts, biases)
    decoded = TorchPacker(CPU, torch.float32).matrix(parts, biases)
    assert isinstance(kept, PackedWeight)
    assert isinstance(decoded, DenseWeight)
    assert kept.nbytes < decoded.nbytes / 3
    x = torch.randn(4, 512, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(kept.multiplied(x), decoded.multiplied(x), atol=1e-5)
    rows = torch.tensor([7, 0, 7])
    assert torch.equal(kept.lookup(rows), decoded.lookup(rows))


@pytest.mark.parametrize("rows", [1, WIDENED_ROWS - 1, WIDENED_ROWS, 40])
@pytest.mark.parametrize("has_bias", [False, True])
def test_half_precision_products_are_those_of_float32_rounded(
    monkeypatch: pytest.MonkeyPatch, rows: int, has_bias: bool
) -> None:
    torch.manual_seed(1)
    data, bias = torch.randn(50, 64).half(), torch.randn(50).half() if has_bias else None
    x = torch.randn(rows, 64).half()
    monkeypatch.setattr(torch_weights, "PIECE", 64 * 7)  # the last of several pieces is a shorter one
    y = DenseWeight(data, (50,), bias).multiplied(x)
    expected = torch.nn.functional.linear(x.float(), data.float(), None if bias is None else bias.float())
    assert y.dtype == torch.float16
    torch.testing.assert_close(y.float(), expected, atol=0.02, rtol=2e-3)


def test_merged_matrices_of_two_types_are_decoded() -> None:
    parts = [tensor_of("Q8_0", 4, 256), tensor_of("Q4_K", 4, 256)]
    assert isinstance(TorchPacker(CPU, torch.float32, keep_packed=True).matrix(parts, []), DenseWeight)


@pytest.mark.parametrize("width", ["q8", "q4"])
def test_a_model_quantized_at_load_answers_alike_packed_and_decoded(width: str) -> None:
    whole = shape_spec("smollm2-135m")
    spec = replace(whole, layers=whole.layers[:2], vocab_size=96)
    made = {
        name: PackedTensor(name, tensor.fmt, tensor.shape, tensor.read)
        for name, tensor in random_tensors(spec, "BF16").items()
    }
    tensors, _ = requantized(made, width)
    step = ModelInput(tuple(range(40)), (SequenceInput(40, 0, (1, 0)),), (3, 39))
    logits, bytes_read = {}, {}
    for keep in (True, False):
        backend = TorchBackend(
            spec, tensors, device="cpu", dtype="float32", cache_tokens=64, keep_packed=keep
        )
        logits[keep], bytes_read[keep] = backend.step(step), backend.read_bytes
    assert np.abs(logits[True] - logits[False]).max() < 1e-4 * np.abs(logits[False]).max()
    assert bytes_read[True] < bytes_read[False] / 3


def test_every_way_to_mix_experts_gives_the_same() -> None:
    random = torch.Generator().manual_seed(1)
    count, hidden, inner = 6, 8, 12
    gate_up = DenseWeight(
        torch.randn(count, 2 * inner, hidden, generator=random),
        (inner, inner),
        torch.randn(count, 2 * inner, generator=random),
    )
    down = DenseWeight(
        torch.randn(count, hidden, inner, generator=random),
        (hidden,),
        torch.randn(count, hidden, generator=random),
    )
    x = torch.randn(3, hidden, generator=random)
    scores = torch.randn(3, count, generator=random)
    chosen, shares = torch_experts.choose(scores, ExpertsSpec(count, 2))
    assert torch.allclose(shares.sum(-1), torch.ones(3))

    def gated(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        return torch.tanh(gate) * up

    ways = [
        way(x, chosen, shares, gate_up, down, gated)
        for way in (torch_experts._sorted, torch_experts._gathered, torch_experts._everywhere)
    ]
    for other in ways[1:]:
        assert torch.allclose(other, ways[0], atol=1e-5)


def test_experts_stay_packed() -> None:
    experts = [[tensor_of("Q8_0", 4, 256, seed), tensor_of("Q8_0", 4, 256, seed + 9)] for seed in range(3)]
    kept = TorchPacker(CPU, torch.float32, keep_packed=True).experts(experts, [])
    decoded = TorchPacker(CPU, torch.float32).experts(experts, [])
    assert isinstance(kept, PackedWeight)
    x = torch.randn(2, 256, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(kept.expert(2).multiplied(x), decoded.expert(2).multiplied(x), atol=1e-5)
    both = torch.tensor([2, 0])
    assert torch.equal(kept.expert(both).dense(torch.float32), decoded.expert(both).dense(torch.float32))
    assert prod(kept.data.shape) == kept.nbytes
