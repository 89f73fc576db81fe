"""Decoding against the gguf package (to the bit) and against blocks made by hand."""

import struct

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from nanollama.errors import FormatError
from nanollama.quant.decode import CHUNK_WEIGHTS, dequantize
from nanollama.quant.formats import FORMATS

PEER_DECODES = [
    "F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K",
    "IQ4_NL", "IQ4_XS", "MXFP4",
]  # fmt: skip


def packed(name: str, rows: int, blocks_per_row: int, seed: int) -> NDArray[np.uint8]:
    """Random bytes: every code, and scales of every kind including infinite, NaN, subnormal and zero."""
    fmt = FORMATS[name]
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (rows, blocks_per_row * fmt.block_bytes), dtype=np.uint8)


def peer_decoded(name: str, data: NDArray[np.uint8]) -> NDArray[np.float32]:
    with np.errstate(all="ignore"):
        return np.ascontiguousarray(gguf.quants.dequantize(data, gguf.GGMLQuantizationType[name]))


@pytest.mark.parametrize("name", PEER_DECODES)
def test_random_bytes_decode_as_in_the_gguf_package_to_the_bit(name: str) -> None:
    fmt = FORMATS[name]
    blocks_per_row = 3 if fmt.block_size > 1 else 100
    data = packed(name, 401, blocks_per_row, seed=fmt.type_id)
    decoded = dequantize(fmt, memoryview(data.tobytes()), (401, blocks_per_row * fmt.block_size))
    expected = peer_decoded(name, data)
    # NaN has many bit patterns; all else, including the sign of zero, must be the same pattern.
    same = decoded.view(np.uint32) == expected.view(np.uint32)
    assert (same | (np.isnan(decoded) & np.isnan(expected))).all()


@pytest.mark.parametrize("name", PEER_DECODES)
@pytest.mark.parametrize("beyond", [-1, 0, 1])
def test_tensors_around_the_chunk_size_decode_whole(name: str, beyond: int) -> None:
    fmt = FORMATS[name]
    blocks = CHUNK_WEIGHTS // fmt.block_size + beyond
    data = packed(name, 1, blocks, seed=7)
    decoded = dequantize(fmt, data, (blocks * fmt.block_size,))
    expected = peer_decoded(name, data)[0]
    np.testing.assert_array_equal(decoded, expected)


def half(value: float) -> bytes:
    return struct.pack("<e", value)


HAND_MADE = [
    ("Q4_0", half(0.5) + bytes([0x0F]) * 16, [0.5 * (15 - 8)] * 16 + [0.5 * -8] * 16),
    ("Q4_1", half(0.5) + half(-1.0) + bytes([0x21]) * 16, [-0.5] * 16 + [0.0] * 16),
    ("Q5_0", half(2.0) + bytes([0xFF, 0xFF, 0, 0]) + bytes([0x10]) * 16, [0.0] * 16 + [2.0 * (1 - 16)] * 16),
    ("Q5_1", half(1.0) + half(3.0) + bytes([0, 0, 0xFF, 0xFF]) + bytes(16), [3.0] * 16 + [19.0] * 16),
    ("Q8_0", half(0.25) + bytes([0x80]) * 32, [-32.0] * 32),
    ("IQ4_NL", half(1.0) + bytes([0xF0]) * 16, [-127.0] * 16 + [113.0] * 16),
    ("MXFP4", bytes([127]) + bytes([0x97]) * 16, [6.0] * 16 + [-0.5] * 16),
    ("MXFP4", bytes([0]) + bytes([0x22]) * 16, [2.0**-127] * 32),
    ("Q6_K", bytes([0x0F]) * 128 + bytes([0xFF]) * 64 + bytes([2]) * 16 + half(0.5),
     [31.0] * 64 + [16.0] * 64 + [31.0] * 64 + [16.0] * 64),
    ("Q2_K", bytes([0x12]) * 16 + bytes([0xE4]) * 64 + half(1.0) + half(0.5),
     ([-0.5] * 32 + [1.5] * 32 + [3.5] * 32 + [5.5] * 32) * 2),
]  # fmt: skip


@pytest.mark.parametrize(("name", "block", "weights"), HAND_MADE)
def test_a_block_made_by_hand_has_the_weights_of_the_formula(
    name: str, block: bytes, weights: list[float]
) -> None:
    fmt = FORMATS[name]
    assert len(block) == fmt.block_bytes
    assert dequantize(fmt, memoryview(block), (fmt.block_size,)).tolist() == weights


@pytest.mark.parametrize(
    ("name", "stored"), [("F64", "<f8"), ("I8", "<i1"), ("I16", "<i2"), ("I32", "<i4"), ("I64", "<i8")]
)
def test_plain_numbers_are_converted(name: str, stored: str) -> None:
    data = np.array([[1, -2, 3], [0, 100, -7]], stored)
    assert dequantize(FORMATS[name], data, (2, 3)).tolist() == data.tolist()


def test_the_result_is_a_writable_copy_also_where_nothing_needs_decoding() -> None:
    data = np.arange(6, dtype=np.float32)
    decoded = dequantize(FORMATS["F32"], data, (2, 3))
    decoded[0, 0] = 9
    assert data[0] == 0


def test_out_receives_the_weights_and_is_returned() -> None:
    data = packed("Q4_K", 2, 1, seed=3)
    out = np.full((2, 256), 7, np.float32)
    assert dequantize(FORMATS["Q4_K"], data.ravel(), (2, 256), out) is out
    np.testing.assert_array_equal(out, peer_decoded("Q4_K", data))


@pytest.mark.parametrize(
    "out", [np.empty(64, np.float32), np.empty((1, 32)), np.empty((32, 2), np.float32).T[:1]]
)
def test_an_out_of_another_layout_is_refused(out: NDArray[np.float32]) -> None:
    with pytest.raises(ValueError, match="contiguous float32"):
        dequantize(FORMATS["Q8_0"], memoryview(bytes(34)), (1, 32), out)


@pytest.mark.parametrize(
    ("nbytes", "shape"), [(33, (1, 32)), (35, (1, 32)), (34, (2, 32)), (34, (1, 31)), (0, (1, 32))]
)
def test_data_of_the_wrong_size_is_refused(nbytes: int, shape: tuple[int, ...]) -> None:
    with pytest.raises(FormatError, match=f"token_embd.weight has {nbytes} bytes of Q8_0"):
        dequantize(FORMATS["Q8_0"], memoryview(bytes(nbytes)), shape, name="token_embd.weight")


def test_no_elements_give_an_empty_array() -> None:
    assert dequantize(FORMATS["Q8_0"], memoryview(b""), (0, 32)).shape == (0, 32)


@pytest.mark.model
def test_real_tensors_of_each_type_decode_as_in_the_gguf_package(smollm2_path, gemma3_path) -> None:  # type: ignore[no-untyped-def]
    from nanollama.formats.gguf import GGUFFile

    for path in (smollm2_path, gemma3_path):
        with GGUFFile(path) as file:
            smallest = {t.fmt.name: t for t in sorted(file.tensors.values(), key=lambda t: -t.nbytes)}
            for tensor in smallest.values():
                decoded = dequantize(tensor.fmt, file.data(tensor.name), tensor.shape)
                data = np.frombuffer(file.data(tensor.name), np.uint8).reshape(*tensor.shape[:-1], -1)
                np.testing.assert_array_equal(decoded, peer_decoded(tensor.fmt.name, data))
                assert np.isfinite(decoded).all()
