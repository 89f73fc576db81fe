"""Encoding: how near decoded weights come to float32, beside llama.cpp's quantizer, and blocks at limits."""

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from nanollama.errors import FormatError, UsageError
from nanollama.formats.gguf import GGUFFile
from nanollama.quant.decode import dequantize
from nanollama.quant.encode import CHUNK_WEIGHTS, ENCODABLE, quantize
from nanollama.quant.formats import FORMATS

BLOCK_TYPES = ("Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_1", "Q4_0")
PEER_ENCODES = ("Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")

# Root-mean-square errors that llama.cpp's ggml_quantize_chunk makes of the same weights, one number a type of
# BLOCK_TYPES. Measured with llama-cpp-python 0.3.36 (ggml 0.25.3), no importance matrix, on x86-64.
LLAMA_CPP = {
    "normal": (0.00535957, 0.0177562, 0.0361596, 0.0379644, 0.0428998, 0.0714948, 0.0784141, 0.0860807),
    "student": (0.0151603, 0.0461871, 0.0827797, 0.0852552, 0.118769, 0.163089, 0.17683, 0.226997),
    "smollm2 blk.3.ffn_down.weight": (
        0.00100347, 0.00323773, 0.00355348, 0.00839605, 0.00794163, 0.00335761, 0, 0.0156249,
    ),
    "smollm2 token_embd.weight": (
        0, 0.00284081, 0.00540273, 0.00559048, 0.00720613, 0.0106883, 0.0115917, 0.0143534,
    ),
    "gemma3 blk.3.ffn_down.weight": (
        8.64308e-05, 0.00027533, 0.000315452, 0.00068554, 0.000682069, 3.25464e-06, 0.000687842, 0.00135683,
    ),
    "gemma3 token_embd.weight": (
        0, 0.000907039, 0.00171086, 0.00176273, 0.00230254, 0.00338844, 0.0036713, 0.00463546,
    ),
}  # fmt: skip


def decoded(name: str, weights: NDArray[np.float32]) -> NDArray[np.float32]:
    return dequantize(FORMATS[name], quantize(FORMATS[name], weights), weights.shape)


def squares(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.square(a.astype(np.float64) - b)


def rms(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    return float(np.sqrt(squares(a, b).mean()))


def random_weights(kind: str, shape: tuple[int, int] = (32, 1024), seed: int = 11) -> NDArray[np.float32]:
    """The arrays that LLAMA_CPP was measured on, drawn in its order."""
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal(shape).astype(np.float32)
    return normal if kind == "normal" else rng.standard_t(3, shape).astype(np.float32)


def real_weights(path: object, name: str) -> NDArray[np.float32]:
    """The first 256 rows of a matrix, as blocks of 256."""
    with GGUFFile(str(path)) as file:
        info = file.tensors[name]
        count = 256 * info.shape[1]
        return dequantize(info.fmt, file.data(name)[: info.fmt.nbytes(count)], (count // 256, 256))


@pytest.mark.parametrize("kind", ["normal", "student"])
@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_the_error_on_random_weights_is_at_most_llama_cpps(name: str, kind: str) -> None:
    weights = random_weights(kind)
    assert rms(decoded(name, weights), weights) <= LLAMA_CPP[kind][BLOCK_TYPES.index(name)]


@pytest.mark.model
@pytest.mark.parametrize("source", [key for key in LLAMA_CPP if " " in key])
def test_the_error_on_real_weights_is_at_most_llama_cpps(source: str, request: pytest.FixtureRequest) -> None:
    model, tensor = source.split()
    weights = real_weights(request.getfixturevalue(f"{model}_path"), tensor)
    for name, bound in zip(BLOCK_TYPES, LLAMA_CPP[source], strict=True):
        assert rms(decoded(name, weights), weights) <= bound, name


@pytest.mark.parametrize("scale", [1e-9, 1e-6, 1e-4, 0.02, 1.0, 300.0])
@pytest.mark.parametrize("name", PEER_ENCODES)
def test_no_block_is_worse_than_that_of_the_gguf_package(name: str, scale: float) -> None:
    weights = random_weights("student", seed=3) * np.float32(scale)
    peer_type = gguf.GGMLQuantizationType[name]
    with np.errstate(all="ignore"):
        theirs = gguf.quants.dequantize(gguf.quants.quantize(weights, peer_type), peer_type)
    ours = squares(decoded(name, weights), weights).reshape(-1, 32).sum(axis=1)
    # Float32 rounding may choose between two codes that are equally near.
    assert (ours <= squares(theirs, weights).reshape(-1, 32).sum(axis=1) * (1 + 1e-5)).all()


@pytest.mark.parametrize(("name", "dtype"), [("F16", np.float16), ("F32", np.float32)])
def test_plain_numbers_are_rounded_to_nearest(name: str, dtype: type[np.floating]) -> None:
    weights = np.concatenate([random_weights("student").ravel(), np.float32([0, -0.0, 1e-7, 65504, -65504])])
    assert quantize(FORMATS[name], weights).tobytes() == weights.astype(dtype).tobytes()


def test_bfloat16_is_rounded_to_nearest_even_as_in_the_gguf_package() -> None:
    ties = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF, 0x80008000], np.uint32).view(np.float32)
    weights = np.concatenate([random_weights("student").ravel(), ties, np.float32([0, -0.0, 3e38])])
    expected = gguf.quants.quantize(weights, gguf.GGMLQuantizationType.BF16)
    assert quantize(FORMATS["BF16"], weights).tobytes() == expected.tobytes()


def representable(name: str, rng: np.random.Generator) -> NDArray[np.float32]:
    """Weights that blocks of a type hold exactly, with the ends of the range in use in every block."""
    n = 64
    d = rng.integers(1, 2000, (n, 1, 1)).astype(np.float32) / 4096
    if name in ("Q4_K", "Q5_K"):
        high = 15 if name == "Q4_K" else 31
        codes = rng.integers(0, high + 1, (n, 8, 32))
        s, m = rng.integers(1, 64, (n, 8, 1)), rng.integers(0, 64, (n, 8, 1))
        codes[..., :2], s[:, 3], m[:, 5] = (0, high), 63, 63
        return (d * s * codes - 0.5 * d * m).reshape(n, 256).astype(np.float32)
    if name == "Q6_K":
        codes, s = rng.integers(-32, 32, (n, 16, 16)), rng.integers(-127, 128, (n, 16, 1))
        codes[..., 0], s[:, 7] = -32, -128
        return (d * s * codes).reshape(n, 256).astype(np.float32)
    low, high = {"Q8_0": (-127, 127), "Q4_0": (-8, 7), "Q5_0": (-16, 15), "Q4_1": (0, 15), "Q5_1": (0, 31)}[
        name
    ]
    codes = rng.integers(low, high + 1, (n, 1, 32))
    codes[..., :2] = low, high
    offset = rng.integers(-500, 500, (n, 1, 1)) / np.float32(64) if low == 0 else 0
    return (d * codes + offset).reshape(n, 32).astype(np.float32)


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_weights_that_the_format_can_hold_come_back_exactly(name: str) -> None:
    weights = representable(name, np.random.default_rng(5))
    np.testing.assert_array_equal(decoded(name, weights), weights)


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_encoding_what_was_decoded_changes_no_weight_by_more_than_its_error(name: str) -> None:
    weights = random_weights("normal")
    once = decoded(name, weights)
    assert rms(decoded(name, once), once) <= 0.25 * rms(once, weights)


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_zeros_stay_zeros_and_one_outlier_keeps_its_size(name: str) -> None:
    weights = np.zeros((3, 256), np.float32)
    weights[1] = 1e-3 * random_weights("normal")[0, :256]
    weights[1, 77] = -60000
    weights[2, 200] = 123.0
    result = decoded(name, weights)
    assert not result[0].any()
    assert result[1, 77] == pytest.approx(-60000, rel=2e-3)
    assert result[2, 200] == pytest.approx(123.0, rel=2e-3)
    assert not np.delete(result[2], 200).any()


@pytest.mark.parametrize("value", [0.37, -0.37, 65504, -65504, 3e-5, -3e-5])
@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_a_constant_block_is_held_as_well_as_one_number_can_be(name: str, value: float) -> None:
    # Scales below 2^-14 are subnormal float16 numbers, of which the nearest may be 2^-25 away; a code of the
    # super-blocks multiplies that by up to 63 * 31.
    slack = 2**-25 * {"Q6_K": 128 * 32, "Q5_K": 63 * 31, "Q4_K": 63 * 15}.get(name, 127)
    result = decoded(name, np.full((2, 256), value, np.float32))
    np.testing.assert_allclose(result, value, rtol=2e-3, atol=slack)


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_weights_smaller_than_any_scale_do_not_grow(name: str) -> None:
    weights = random_weights("normal")[:4] * np.float32(1e-42)
    assert weights.any()
    assert not decoded(name, weights).any()
    tiny = random_weights("normal")[:4] * np.float32(1e-8)
    assert np.abs(decoded(name, tiny) - tiny).max() <= 2**-23  # twice the smallest float16 number


@pytest.mark.parametrize("name", ["Q4_K", "Q5_K"])
def test_groups_whose_offset_the_format_lacks_begin_at_zero(name: str) -> None:
    weights = 5 + 0.5 * np.abs(random_weights("normal")[:4])
    result = decoded(name, weights)
    assert np.abs(result - weights).max() <= weights.max() / (15 if name == "Q4_K" else 31)


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_a_weight_has_the_same_code_whatever_it_is_a_part_of(name: str) -> None:
    fmt = FORMATS[name]
    weights = random_weights("student", (1, CHUNK_WEIGHTS + 3 * 256))
    whole = quantize(fmt, weights)
    for start in (0, 256, CHUNK_WEIGHTS - 256, CHUNK_WEIGHTS, CHUNK_WEIGHTS + 512):
        part = quantize(fmt, weights[:, start : start + 256])
        np.testing.assert_array_equal(part, whole[fmt.nbytes(start) : fmt.nbytes(start + 256)])


def test_strided_weights_are_read_in_their_order() -> None:
    weights = random_weights("normal")
    np.testing.assert_array_equal(
        quantize(FORMATS["Q8_0"], weights.T), quantize(FORMATS["Q8_0"], np.ascontiguousarray(weights.T))
    )


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("name", ENCODABLE)
def test_weights_that_are_no_finite_numbers_are_refused(name: str, bad: float) -> None:
    weights = random_weights("normal")
    weights[9, 100] = bad
    with pytest.raises(FormatError, match=r"blk\.0\.w holds weights that are infinite or not a number"):
        quantize(FORMATS[name], weights, name="blk.0.w")


@pytest.mark.parametrize(
    ("name", "value"), [(n, 65505) for n in ENCODABLE if n not in ("F32", "BF16")] + [("BF16", 3.4e38)]
)
def test_weights_too_large_for_the_format_are_refused(name: str, value: float) -> None:
    weights = np.full((1, 256), value, np.float32)
    with pytest.raises(
        FormatError, match=rf"the tensor holds a weight of magnitude .*, but {name} holds none above"
    ):
        quantize(FORMATS[name], -weights)


@pytest.mark.parametrize("name", ["Q2_K", "IQ4_NL", "MXFP4", "I8"])
def test_a_format_without_an_encoder_is_refused_with_the_list(name: str) -> None:
    with pytest.raises(UsageError, match=rf"{name} is not written; expected one of F32, .*Q6_K"):
        quantize(FORMATS[name], np.zeros((1, 256), np.float32))


def test_rows_that_are_no_whole_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="not whole Q4_K blocks"):
        quantize(FORMATS["Q4_K"], np.zeros((4, 64), np.float32))
