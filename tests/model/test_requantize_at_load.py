"""Quantizing while loading: which tensors change, to what, and the line that says so."""

import numpy as np
import pytest
from numpy.typing import NDArray

from nanollama.errors import FormatError, UsageError
from nanollama.model.checkpoint import PackedTensor
from nanollama.model.requantize import requantized
from nanollama.quant.encode import quantize
from nanollama.quant.formats import FORMATS


def packed(
    name: str, weights: NDArray[np.float32], fmt: str = "F32", heads: int | None = None
) -> PackedTensor:
    data = quantize(FORMATS[fmt], weights)
    return PackedTensor(name, FORMATS[fmt], weights.shape, lambda: memoryview(data), paired_heads=heads)


def model(fmt: str, *, heads: int | None = None) -> dict[str, PackedTensor]:
    rng = np.random.default_rng(4)
    tensors = [
        packed("model.embed_tokens.weight", rng.standard_normal((50, 64)).astype(np.float32), fmt),
        packed(
            "model.layers.0.self_attn.q_proj.weight",
            rng.standard_normal((64, 64)).astype(np.float32),
            fmt,
            heads,
        ),
        packed("model.norm.weight", rng.standard_normal(64).astype(np.float32)),
    ]
    return {tensor.name: tensor for tensor in tensors}


Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize(("width", "matrix"), [("q8", "Q8_0"), ("q4", "Q4_1")])
def test_wide_matrices_are_quantized_as_a_file_would_be(width: str, matrix: str) -> None:
    tensors = model("F16")
    result, text = requantized(tensors, width)
    assert [t.fmt.name for t in result.values()] == ["Q8_0", matrix, "F32"]
    np.testing.assert_array_equal(
        result[Q_PROJ].packed().reshape(-1), quantize(FORMATS[matrix], tensors[Q_PROJ].float32())
    )
    assert result["model.norm.weight"] is tensors["model.norm.weight"]
    assert text == f"Quantized: 0MB ({width.upper()})   [vs ~0MB float32]"


def test_the_line_gives_the_sizes_of_all_weights() -> None:
    huge = PackedTensor("lm_head.weight", FORMATS["F16"], (131072, 14336), lambda: memoryview(b""))
    _, text = requantized({huge.name: huge}, "q8")
    assert text == "Quantized: 2GB (Q8)   [vs ~7.5GB float32]"


@pytest.mark.parametrize(("width", "fmt"), [("q8", "Q8_0"), ("q8", "Q5_1"), ("q4", "Q4_1"), ("q4", "Q4_0")])
def test_what_is_narrow_enough_is_left_alone_and_said(width: str, fmt: str) -> None:
    tensors = model(fmt)
    result, text = requantized(tensors, width)
    assert result == tensors
    assert text == f"Not quantized: no matrix gets smaller in {width.upper()} (weights of 0MB)"


def test_rows_of_paired_heads_are_put_in_order_once() -> None:
    tensors = model("F32", heads=4)
    result, _ = requantized(tensors, "q8")
    error = np.abs(result[Q_PROJ].float32() - tensors[Q_PROJ].float32())
    assert error.max() < 0.02
    assert (tensors[Q_PROJ].float32() != model("F32")[Q_PROJ].float32()).any()


def test_weights_that_are_no_numbers_are_refused_by_name_when_they_are_read() -> None:
    weights = np.zeros((4, 64), np.float32)
    broken = PackedTensor(
        Q_PROJ, FORMATS["F32"], weights.shape, lambda: memoryview((weights + np.inf).tobytes())
    )
    result, _ = requantized({Q_PROJ: broken}, "q8")
    with pytest.raises(FormatError, match=rf"the tensor {Q_PROJ} holds weights that are infinite"):
        result[Q_PROJ].packed()


def test_another_width_is_refused() -> None:
    with pytest.raises(UsageError, match="quantize is 'q5'; expected one of q8, q4"):
        requantized({}, "q5")
