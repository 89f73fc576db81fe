"""Norms, rotation, gated activations and the search over logits against float64 and NumPy."""

import ctypes

import numpy as np
import pytest
from numpy.typing import NDArray

from nanollama.backends.native.library import Activations, Kernels
from packing import inputs

Floats = NDArray[np.float32]


def address(array: NDArray[np.generic] | None) -> int | None:
    return None if array is None else array.ctypes.data


def quantized(rows: int, cols: int) -> tuple[Activations, NDArray[np.int8], Floats]:
    quants, meta = np.zeros((rows, cols), np.int8), np.zeros((rows, cols // 32, 4), np.float32)
    return Activations(None, 0, quants.ctypes.data, meta.ctypes.data, cols), quants, meta


def rms_norm(
    kernels: Kernels,
    x: Floats,
    weight: Floats | None,
    add: Floats | None,
    out: Floats,
    to: Activations | None = None,
) -> None:
    kernels.rms_norm(
        x.ctypes.data, x.shape[1], out.shape[1], address(add), 0 if add is None else add.shape[1],
        address(weight), 1e-5, out.ctypes.data, out.shape[1], None if to is None else ctypes.byref(to),
        0, len(x),
    )  # fmt: skip


@pytest.mark.parametrize("cols", [32, 64, 96, 576, 2048, 5, 40])
@pytest.mark.parametrize("weighted", [True, False])
def test_rms_norm_is_that_of_float64(kernels: Kernels, cols: int, weighted: bool) -> None:
    rng = np.random.default_rng(cols)
    x = (rng.standard_normal((5, cols)) * [[1e-4], [1], [30], [1e6], [0]]).astype(np.float32)
    weight = rng.standard_normal(cols).astype(np.float32) if weighted else None
    out = np.full_like(x, np.nan)
    rms_norm(kernels, x, weight, None, out)
    wide = x.astype(np.float64)
    expected = wide / np.sqrt((wide**2).mean(1, keepdims=True) + 1e-5) * (1 if weight is None else weight)
    np.testing.assert_allclose(out, expected, rtol=1e-6, atol=0)


def test_rms_norm_adds_the_residual_and_quantizes_in_the_same_pass(kernels: Kernels) -> None:
    rng = np.random.default_rng(1)
    x, add, weight = (rng.standard_normal(shape).astype(np.float32) for shape in ((3, 128), (3, 128), (128,)))
    summed = x + add
    plain, fused = np.empty_like(x), np.empty_like(x)
    rms_norm(kernels, summed.copy(), weight, None, plain)
    struct, quants, meta = quantized(3, 128)
    rms_norm(kernels, x, weight, add, fused, struct)
    np.testing.assert_array_equal(x, summed)
    np.testing.assert_array_equal(fused, plain)
    apart = inputs(kernels, plain)
    np.testing.assert_array_equal(quants, apart.quants)
    np.testing.assert_array_equal(meta, apart.meta)


def test_rms_norm_may_write_over_its_input(kernels: Kernels) -> None:
    x = np.random.default_rng(2).standard_normal((4, 64)).astype(np.float32)
    apart = np.empty_like(x)
    rms_norm(kernels, x.copy(), None, None, apart)
    rms_norm(kernels, x, None, None, x)
    np.testing.assert_array_equal(x, apart)


@pytest.mark.parametrize(("head_dim", "rope_dim"), [(64, 64), (128, 64), (8, 8), (20, 12), (256, 256)])
def test_rope_rotates_the_halves_of_every_head(kernels: Kernels, head_dim: int, rope_dim: int) -> None:
    rng = np.random.default_rng(head_dim)
    heads, half = 3, rope_dim // 2
    x = rng.standard_normal((4, heads * head_dim)).astype(np.float32)
    angles = rng.uniform(-3, 3, (10, half))
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    positions = np.array([3, 0, 9, 3], np.int32)
    expected = x.astype(np.float64).reshape(4, heads, head_dim)
    c, s = cos[positions][:, None].astype(np.float64), sin[positions][:, None].astype(np.float64)
    a, b = expected[..., :half].copy(), expected[..., half:rope_dim].copy()
    expected[..., :half], expected[..., half:rope_dim] = a * c - b * s, b * c + a * s
    kernels.rope(
        x.ctypes.data,
        x.shape[1],
        heads,
        head_dim,
        rope_dim,
        positions.ctypes.data,
        cos.ctypes.data,
        sin.ctypes.data,
        0,
        4,
    )
    np.testing.assert_allclose(x.reshape(4, heads, head_dim), expected, rtol=0, atol=1e-6)


def activate(
    kernels: Kernels, which: int, gate: Floats, up: Floats | None, to: Activations | None = None
) -> Floats:
    rows, cols = gate.shape
    out = np.full_like(gate, np.nan)
    kernels.activate(
        which, gate.ctypes.data, address(up), cols, cols, out.ctypes.data, cols,
        None if to is None else ctypes.byref(to), 0, rows * -(-cols // 32),
    )  # fmt: skip
    return out


def silu64(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return x / (1 + np.exp(-x))


def gelu64(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize(("which", "exact"), [(0, silu64), (1, gelu64)], ids=["silu", "gelu_tanh"])
def test_activations_are_right_to_a_few_units_in_the_last_place(
    kernels: Kernels, which: int, exact: object
) -> None:
    x = np.concatenate([np.linspace(-20, 20, 32 * 4000), np.linspace(-1e-3, 1e-3, 32 * 100)]).astype(
        np.float32
    )
    out = activate(kernels, which, x.reshape(1, -1), None)[0]
    assert callable(exact)
    expected = exact(x.astype(np.float64))
    # gelu's exponent is a cubic: its rounding is magnified by its size, up to e^-40 where
    # the result is as good as 0.
    allowed = 5e-7 if which == 0 else 5e-7 + 3e-7 * np.abs(1.6 * (x + 0.044715 * x.astype(np.float64) ** 3))
    error = np.abs(out - expected)
    assert (error <= allowed * np.abs(expected) + 1e-12).all(), (error / np.abs(expected)).max()


@pytest.mark.parametrize("which", [0, 1])
def test_activations_have_the_right_limits(kernels: Kernels, which: int) -> None:
    x = np.zeros((1, 32), np.float32)
    x[0, :8] = [1e4, 100, 89, -89, -100, -1e4, 3e38, np.nan]
    out = activate(kernels, which, x, None)[0]
    np.testing.assert_array_equal(out[:3], x[0, :3])
    np.testing.assert_allclose(out[3:6], 0, atol=1e-30)
    assert np.isnan(out[7])
    assert (out[8:] == 0).all()


def test_the_gated_product_is_quantized_in_the_same_pass(kernels: Kernels) -> None:
    rng = np.random.default_rng(5)
    gate, up = (rng.standard_normal((3, 96)).astype(np.float32) for _ in range(2))
    struct, quants, meta = quantized(3, 96)
    out = activate(kernels, 0, gate, up, struct)
    np.testing.assert_allclose(out, silu64(gate.astype(np.float64)) * up, rtol=1e-6, atol=1e-9)
    apart = inputs(kernels, out)
    np.testing.assert_array_equal(quants, apart.quants)
    np.testing.assert_array_equal(meta, apart.meta)


def clamped64(gate: NDArray[np.float64], up: NDArray[np.float64]) -> NDArray[np.float64]:
    gate, up = np.minimum(gate, 7), np.clip(up, -7, 7) + 1
    return gate / (1 + np.exp(np.minimum(-1.702 * gate, 700))) * up


def test_the_clamped_gate_is_that_of_float64(kernels: Kernels) -> None:
    rng = np.random.default_rng(6)
    gate = (rng.standard_normal((3, 32 * 40)) * [[0.01], [5], [50]]).astype(np.float32)
    up = (rng.standard_normal(gate.shape) * 8).astype(np.float32)
    gate[0, :8], up[0, :8] = (
        [7, 7.5, 1e30, -1e30, 100, -100, 0, -0.0],
        [7, -7, 1e30, -1e30, 0, 1e30, 7.1, -7.1],
    )
    expected = clamped64(gate.astype(np.float64), up.astype(np.float64))
    np.testing.assert_allclose(activate(kernels, 2, gate, up), expected, rtol=2e-6, atol=1e-12)
    alone = activate(kernels, 2, gate, None)
    np.testing.assert_allclose(
        alone, clamped64(gate.astype(np.float64), np.zeros(gate.shape)), rtol=2e-6, atol=1e-12
    )


def test_the_clamped_gate_does_not_hide_what_is_broken(kernels: Kernels) -> None:
    gate, up = np.ones((1, 32), np.float32), np.ones((1, 32), np.float32)
    gate[0, 3], up[0, 5] = np.nan, np.nan
    out = activate(kernels, 2, gate, up)[0]
    assert np.flatnonzero(np.isnan(out)).tolist() == [3, 5]


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("cols", [1, 7, 31, 33, 50, 95])
def test_gates_of_any_width_are_those_of_a_wider_row(kernels: Kernels, which: int, cols: int) -> None:
    rng = np.random.default_rng(cols)
    gate, up = (rng.standard_normal((3, 96)).astype(np.float32) for _ in range(2))
    whole = activate(kernels, which, gate, up)
    part = activate(kernels, which, *(np.ascontiguousarray(x[:, :cols]) for x in (gate, up)))
    np.testing.assert_array_equal(part, whole[:, :cols])


@pytest.mark.parametrize("cols", [32, 64, 50, 5])
def test_a_sum_is_quantized_in_the_same_pass(kernels: Kernels, cols: int) -> None:
    rng = np.random.default_rng(cols)
    x, more = (rng.standard_normal((3, cols)).astype(np.float32) for _ in range(2))
    expected = x + more
    struct, quants, meta = quantized(3, cols)
    to = ctypes.byref(struct) if cols % 32 == 0 else None
    kernels.add(x.ctypes.data, cols, cols, more.ctypes.data, cols, to, 0, 3)
    np.testing.assert_array_equal(x, expected)
    if to is not None:
        apart = inputs(kernels, expected)
        np.testing.assert_array_equal(quants, apart.quants)
        np.testing.assert_array_equal(meta, apart.meta)


@pytest.mark.parametrize("cols", [32, 96, 61, 5, 17])
@pytest.mark.parametrize("cap", [1.5, 30.0])
def test_a_soft_cap_is_that_of_float64(kernels: Kernels, cols: int, cap: float) -> None:
    rng = np.random.default_rng(cols)
    wide = np.full((4, cols + 3), 99, np.float32)
    x = wide[:, :cols]
    x[:] = rng.standard_normal((4, cols)) * [[1e-3], [1], [40], [1e5]]
    x[0, 0], x[1, 0], x[2, 0] = np.inf, -np.inf, 3e38
    x[3, 4] = np.nan
    expected = cap * np.tanh(x.astype(np.float64) / cap)
    blocks = -(-cols // 32)
    for unit in reversed(range(4 * blocks)):
        kernels.softcap(wide.ctypes.data, cols + 3, cols, cap, unit, unit + 1)
    np.testing.assert_allclose(x, expected, rtol=2e-7, atol=2e-7 * cap)
    assert (wide[:, cols:] == 99).all()
