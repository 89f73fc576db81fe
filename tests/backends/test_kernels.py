"""Packed weights and matmuls against float64: every type, variant, odd shape and extreme of the formats."""

import ctypes
from ctypes import POINTER, c_float, c_int64, c_void_p

import numpy as np
import pytest

from nanollama.backends.native.library import Activations, Kernels, Library, Matrix
from nanollama.quant.formats import FORMATS
from packing import (
    BLOCK_TYPES,
    TYPES,
    Packed,
    blocks_of,
    decoded,
    inputs,
    matmul,
    pack,
    random_rows,
    set_halves,
)

TOLERANCE = 2e-6
"""Of sum |activation| * largest |weight| of the row: rounding of each block, far below one wrong weight."""


def embedding(library: Library, weights: Packed, ids: np.ndarray, scale: float, out: np.ndarray) -> int:
    """What nl_embed returns."""
    lookup = library.bind(
        "nl_embed", c_int64, POINTER(Matrix), c_void_p, c_float, c_void_p, c_int64, c_int64, c_int64
    )
    status: int = lookup(
        ctypes.byref(weights.matrix), ids.ctypes.data, scale, out.ctypes.data, weights.cols, 0, len(ids)
    )
    return status


def embed(library: Library, weights: Packed, ids: list[int], scale: float = 1.0) -> np.ndarray:
    out = np.full((len(ids), weights.cols), np.nan, np.float32)
    assert embedding(library, weights, np.array(ids, np.int32), scale, out) == 0
    return out


def assert_product(out: np.ndarray, weights: np.ndarray, restored: np.ndarray) -> None:
    expected = restored @ weights.astype(np.float64).T
    bound = np.abs(restored).sum(1)[:, None] * np.abs(weights).max(1)[None, :].astype(np.float64)
    error = np.abs(out - expected)
    assert (error <= TOLERANCE * bound + 1e-30).all(), (
        f"off by {np.nanmax(error / (bound + 1e-30)):.2e} of the bound"
    )


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("rows", [1, 8, 19])
def test_a_packed_row_comes_back_bit_for_bit(kernel_library: Library, kind: str, rows: int) -> None:
    rng = np.random.default_rng(rows)
    source = random_rows(kind, rows, 512, rng)
    weights = pack(kernel_library, [(kind, source)], 512)
    ids = list(range(rows))
    np.testing.assert_array_equal(embed(kernel_library, weights, ids), decoded(kind, source, 512))
    np.testing.assert_array_equal(
        embed(kernel_library, weights, ids[::-1], 24.0), decoded(kind, source, 512)[::-1] * np.float32(24.0)
    )


def test_an_embedding_id_outside_the_table_is_refused(kernel_library: Library) -> None:
    weights = pack(kernel_library, [("F32", random_rows("F32", 3, 32, np.random.default_rng(0)))], 32)
    out = np.zeros((1, 32), np.float32)
    for wrong in (-1, 3, 2**31 - 1):
        assert embedding(kernel_library, weights, np.array([wrong], np.int32), 1.0, out) == -1


def test_types_and_widths_without_a_packed_form_are_refused(kernel_library: Library) -> None:
    assert kernel_library.nl_kind_of(FORMATS["Q2_K"].type_id) == -1
    q4_0, q4_k = (kernel_library.nl_kind_of(FORMATS[name].type_id) for name in ("Q4_0", "Q4_K"))
    assert kernel_library.nl_packed_bytes(q4_0, 8, 33) == -1
    assert kernel_library.nl_packed_bytes(q4_k, 8, 288) == -1
    assert kernel_library.nl_packed_bytes(99, 8, 32) == -1
    assert kernel_library.nl_packed_bytes(q4_0, 9, 64) == 2 * 320, (
        "two groups of 288 bytes, each in whole cache lines"
    )


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize(("rows", "cols"), [(8, 256), (13, 576), (1, 32), (40, 1536), (16, 16384)])
def test_a_product_is_that_of_the_decoded_weights(
    kernel_library: Library, kernels: Kernels, kind: str, rows: int, cols: int
) -> None:
    if cols % FORMATS[kind].block_size:
        cols = (cols + 255) // 256 * 256
    rng = np.random.default_rng(cols)
    source = random_rows(kind, rows, cols, rng)
    weights = pack(kernel_library, [(kind, source)], cols)
    x = inputs(kernels, rng.standard_normal((5, cols)))
    seen = x.restored if kind in BLOCK_TYPES else x.values.astype(np.float64)
    assert_product(matmul(kernels, weights, x), decoded(kind, source, cols), seen)


@pytest.mark.parametrize("kind", ["F16", "BF16", "F32"])
def test_float_weights_take_any_width(kernel_library: Library, kernels: Kernels, kind: str) -> None:
    rng = np.random.default_rng(3)
    for cols in (1, 7, 33, 100):
        source = random_rows(kind, 9, cols, rng)
        x = inputs(kernels, rng.standard_normal((3, cols)))
        product = matmul(kernels, pack(kernel_library, [(kind, source)], cols), x)
        assert_product(product, decoded(kind, source, cols), x.values.astype(np.float64))


@pytest.mark.parametrize("kind", TYPES)
def test_a_row_is_the_same_to_the_bit_in_any_batch_and_any_split(
    kernel_library: Library, kernels: Kernels, kind: str
) -> None:
    rng = np.random.default_rng(7)
    weights = pack(kernel_library, [(kind, random_rows(kind, 44, 512, rng))], 512)
    values = rng.standard_normal((33, 512)).astype(np.float32)
    alone = np.concatenate([matmul(kernels, weights, inputs(kernels, values[i : i + 1])) for i in range(33)])
    for batch in (2, 3, 4, 5, 7, 16, 33):
        np.testing.assert_array_equal(
            matmul(kernels, weights, inputs(kernels, values[:batch])), alone[:batch]
        )
    parts = [
        matmul(kernels, weights, inputs(kernels, values), units=unit) for unit in ((0, 1), (1, 4), (4, 6))
    ]
    np.testing.assert_array_equal(np.nansum(parts, axis=0), alone)
    assert np.isnan(parts[1][:, :8]).all(), "units outside the range were written"


@pytest.mark.parametrize("kind", TYPES)
def test_a_row_is_the_same_to_the_bit_in_any_turn_of_rows(
    kernel_library: Library, kernels: Kernels, kind: str
) -> None:
    rng = np.random.default_rng(9)
    weights = pack(kernel_library, [(kind, random_rows(kind, 40, 256, rng))], 256)
    values = rng.standard_normal((300, 256)).astype(np.float32)
    whole = matmul(kernels, weights, inputs(kernels, values))
    for row in (0, 131, 132, 251, 252, 299):
        np.testing.assert_array_equal(
            matmul(kernels, weights, inputs(kernels, values[row : row + 1]))[0], whole[row]
        )


def test_wide_inputs_are_the_same_in_panels_of_rows(kernel_library: Library, kernels: Kernels) -> None:
    rng = np.random.default_rng(8)
    weights = pack(kernel_library, [("Q4_1", random_rows("Q4_1", 8, 16384, rng))], 16384)
    values = rng.standard_normal((23, 16384)).astype(np.float32)
    alone = np.concatenate([matmul(kernels, weights, inputs(kernels, values[i : i + 1])) for i in range(23)])
    np.testing.assert_array_equal(matmul(kernels, weights, inputs(kernels, values)), alone)


@pytest.mark.parametrize("rows", [1, 2, 9])
def test_what_is_fetched_ahead_changes_nothing(kernel_library: Library, kernels: Kernels, rows: int) -> None:
    rng = np.random.default_rng(12)
    parts = [(kind, random_rows(kind, 40, 512, rng)) for kind in ("Q4_K", "Q8_0", "F16")]
    weights, x = pack(kernel_library, parts, 512), inputs(kernels, rng.standard_normal((rows, 512)))
    plain = matmul(kernels, weights, x)
    for address in (weights.matrix.segments[0].data, 64, 2**63 - 64):  # also where there is no memory
        np.testing.assert_array_equal(matmul(kernels, weights, x, next_weights=address), plain)


def test_segments_of_several_types_are_one_matrix(kernel_library: Library, kernels: Kernels) -> None:
    rng = np.random.default_rng(9)
    parts = [
        (kind, random_rows(kind, rows, 256, rng)) for kind, rows in (("Q4_K", 24), ("Q6_K", 11), ("F16", 5))
    ]
    weights = pack(kernel_library, parts, 256)
    x = inputs(kernels, rng.standard_normal((6, 256)))
    assert weights.units == 3 + 2 + 1
    bias = rng.standard_normal(weights.rows).astype(np.float32)
    alone = np.concatenate([matmul(kernels, pack(kernel_library, [part], 256), x) for part in parts], axis=1)
    np.testing.assert_array_equal(matmul(kernels, weights, x), alone)
    np.testing.assert_array_equal(matmul(kernels, weights, x, bias=bias), alone + bias)
    split = [matmul(kernels, weights, x, units=unit) for unit in ((0, 2), (2, 5), (5, 6))]
    np.testing.assert_array_equal(np.nansum(split, axis=0), alone)
    embedded = embed(kernel_library, weights, [23, 24, 34, 35, 39])
    expected = np.concatenate([decoded(kind, source, 256) for kind, source in parts])
    np.testing.assert_array_equal(embedded, expected[[23, 24, 34, 35, 39]])


QUANTS = {
    "Q4_0": 2,
    "Q4_1": 4,
    "Q5_0": 2,
    "Q5_1": 4,
    "Q8_0": 2,
    "Q4_K": 16,
    "Q5_K": 16,
    "IQ4_NL": 2,
    "MXFP4": 1,
}
"""Offset of the first quant byte; between it and the float16 fields lie more quants, or 6-bit scales."""


@pytest.mark.parametrize("kind", sorted(QUANTS))
@pytest.mark.parametrize("byte", [0x00, 0xFF, 0x80, 0x7F, 0x0F, 0xF0, 0x81])
@pytest.mark.parametrize("sign", ["+", "-", "alternating", "weight"])
def test_the_largest_integer_sums_are_exact(
    kernel_library: Library, kernels: Kernels, kind: str, byte: int, sign: str
) -> None:
    """All weights and activations at their extremes: an int16 that saturates or wraps would show here."""
    cols = 256
    source = random_rows(kind, 8, cols, np.random.default_rng(0))
    blocks = blocks_of(kind, source)
    blocks[..., QUANTS[kind] :] = byte
    if kind in ("Q4_K", "Q5_K"):
        blocks[..., 4:16] = 0x41  # scale 1, minimum 1 in every sub-block
    if kind == "MXFP4":
        blocks[..., 0] = 128
    set_halves(kind, blocks, np.ones(blocks.shape[:2]))
    plain = decoded(kind, source, cols)
    signs = {
        "+": 1.0,
        "-": -1.0,
        "alternating": np.where(np.arange(cols) % 2, 1.0, -1.0),
        "weight": np.sign(plain[0]),
    }
    values = np.broadcast_to(127.0 * signs[sign], (13, cols)).astype(np.float32)
    values[:, ::32] = np.where(values[:, ::32] == 0, 127, values[:, ::32])
    x = inputs(kernels, values)
    assert (x.meta[:, :, 0] == 1).all()
    expected = values.astype(np.float64) @ plain.astype(np.float64).T
    np.testing.assert_array_equal(matmul(kernels, pack(kernel_library, [(kind, source)], cols), x), expected)


@pytest.mark.parametrize("high", [0x00, 0xFF])
@pytest.mark.parametrize("scale", [-128, 127, 1, 0])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_largest_integer_sums_of_q6_k_are_right(
    kernel_library: Library, kernels: Kernels, high: int, scale: int, sign: float
) -> None:
    source = random_rows("Q6_K", 8, 512, np.random.default_rng(0))
    blocks = blocks_of("Q6_K", source)
    blocks[..., :192] = high
    blocks[..., 192:208] = scale & 0xFF
    blocks[..., 192:208:2] = 0x80
    set_halves("Q6_K", blocks, np.ones(blocks.shape[:2]))
    x = inputs(kernels, np.full((13, 512), 127 * sign, np.float32))
    product = matmul(kernels, pack(kernel_library, [("Q6_K", source)], 512), x)
    assert_product(product, decoded("Q6_K", source, 512), x.restored)


@pytest.mark.parametrize("kind", [kind for kind in BLOCK_TYPES if kind != "MXFP4"])
@pytest.mark.parametrize("scale", [0.0, 2.0**-24, 6.0e-5, 1000.0])
def test_zero_subnormal_and_huge_scales_are_honoured(
    kernel_library: Library, kernels: Kernels, kind: str, scale: float
) -> None:
    rng = np.random.default_rng(11)
    source = random_rows(kind, 16, 256, rng)
    blocks = blocks_of(kind, source)
    set_halves(kind, blocks, np.full(blocks.shape[:2], scale))
    x = inputs(kernels, rng.standard_normal((3, 256)))
    product = matmul(kernels, pack(kernel_library, [(kind, source)], 256), x)
    assert_product(product, decoded(kind, source, 256), x.restored)


@pytest.mark.parametrize("exponent", [0, 1, 2, 3, 127, 200])
def test_every_mxfp4_exponent_is_a_power_of_two(
    kernel_library: Library, kernels: Kernels, exponent: int
) -> None:
    rng = np.random.default_rng(exponent)
    source = random_rows("MXFP4", 8, 64, rng)
    blocks_of("MXFP4", source)[..., 0] = exponent
    weights = pack(kernel_library, [("MXFP4", source)], 64)
    plain = decoded("MXFP4", source, 64)
    np.testing.assert_array_equal(embed(kernel_library, weights, list(range(8))), plain)
    x = inputs(
        kernels,
        np.exp2(float(min(100, 127 - exponent))) * rng.integers(-127, 128, (3, 64)).astype(np.float64),
    )
    assert_product(matmul(kernels, weights, x), plain, x.restored)


@pytest.mark.parametrize("kind", TYPES)
def test_the_fast_variants_equal_the_portable_one(
    kernel_library: Library, kernels: Kernels, portable: Kernels, kind: str
) -> None:
    """Integer sums are the same; only the rounding of a * b + c, once or twice, may differ."""
    rng = np.random.default_rng(12)
    weights = pack(kernel_library, [(kind, random_rows(kind, 24, 768, rng))], 768)
    values = rng.standard_normal((4, 768))
    ours, theirs = inputs(kernels, values), inputs(portable, values)
    np.testing.assert_array_equal(ours.quants, theirs.quants)
    np.testing.assert_array_equal(ours.meta, theirs.meta)
    fast, slow = matmul(kernels, weights, ours), matmul(portable, weights, theirs)
    np.testing.assert_allclose(fast, slow, rtol=0, atol=float(3e-6 * np.abs(slow).max()))


def test_quantization_is_nearest_even_with_exact_sums(kernels: Kernels) -> None:
    rng = np.random.default_rng(13)
    values = (rng.standard_normal((7, 96)) * np.exp(rng.uniform(-20, 20, (7, 1)))).astype(np.float32)
    values[2] = 0
    values[3, :32] = np.float32(1e-40)
    values[4, :32] = np.float32(1e36)
    x = inputs(kernels, values)
    blocks = values.reshape(7, 3, 32)
    largest = np.abs(blocks).max(2)
    usable = largest >= np.float32(1e-30)
    inverse = np.where(usable, np.float32(127) / np.where(usable, largest, 1), np.float32(0)).astype(
        np.float32
    )
    expected = np.rint(blocks * inverse[..., None]).astype(np.int8)
    scale = np.where(usable, largest / np.float32(127), np.float32(0)).astype(np.float32)
    np.testing.assert_array_equal(x.quants.reshape(7, 3, 32), expected)
    sums = [
        expected.astype(np.int64)[..., part].sum(2) for part in (slice(0, 32), slice(0, 16), slice(16, 32))
    ]
    np.testing.assert_array_equal(
        x.meta, np.stack([scale, *(scale * s.astype(np.float32) for s in sums)], axis=2)
    )


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_a_broken_activation_is_not_hidden(kernel_library: Library, kernels: Kernels, poison: float) -> None:
    rng = np.random.default_rng(14)
    weights = pack(kernel_library, [("Q4_0", random_rows("Q4_0", 8, 64, rng))], 64)
    values = rng.standard_normal((4, 64))
    values[1, 40] = poison
    out = matmul(kernels, weights, inputs(kernels, values))
    assert not np.isfinite(out[1]).any()
    assert np.isfinite(out[[0, 2, 3]]).all()


def test_no_rows_and_no_units_are_no_work(kernel_library: Library, kernels: Kernels) -> None:
    weights = pack(kernel_library, [("Q4_0", random_rows("Q4_0", 8, 32, np.random.default_rng(0)))], 32)
    empty = Activations(None, 0, None, None, 32)
    out = np.full((1, 8), 99, np.float32)
    kernels.matmul(ctypes.byref(weights.matrix), ctypes.byref(empty), 0, out.ctypes.data, 8, None, 0, 1, None)
    kernels.matmul(ctypes.byref(weights.matrix), ctypes.byref(empty), 1, out.ctypes.data, 8, None, 1, 1, None)
    assert (out == 99).all()
