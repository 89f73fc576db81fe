"""The table of tensor types against the gguf package."""

import gguf
import pytest

from nanollama.quant.decode import dequantize
from nanollama.quant.formats import BY_ID, FORMATS, REMOVED


@pytest.mark.parametrize("peer", list(gguf.GGMLQuantizationType), ids=lambda peer: peer.name)
def test_every_type_of_the_gguf_package_has_the_same_number_and_block(
    peer: gguf.GGMLQuantizationType,
) -> None:
    fmt = FORMATS[peer.name]
    block_size, block_bytes = gguf.GGML_QUANT_SIZES[peer]
    if peer.name == "Q8_1":
        block_bytes = 36  # two fp16 numbers and 32 bytes in ggml-common.h; the package still says 40
    assert (fmt.type_id, fmt.block_size, fmt.block_bytes) == (peer.value, block_size, block_bytes)
    assert BY_ID[peer.value] is fmt


def test_numbers_are_distinct_and_withdrawn_ones_are_not_in_use() -> None:
    assert len(BY_ID) == len(FORMATS)
    assert not set(REMOVED) & set(BY_ID)


@pytest.mark.parametrize(
    ("name", "n_elements", "nbytes"),
    [("F32", 3, 12), ("BF16", 1, 2), ("Q4_1", 64, 40), ("Q6_K", 512, 420), ("MXFP4", 32, 17), ("Q4_0", 0, 0)],
)
def test_nbytes_counts_whole_blocks(name: str, n_elements: int, nbytes: int) -> None:
    assert FORMATS[name].nbytes(n_elements) == nbytes


def test_decodable_says_whether_there_is_a_decoder() -> None:
    from nanollama.errors import UnsupportedError

    for fmt in FORMATS.values():
        data = memoryview(bytes(fmt.block_bytes))
        if fmt.decodable:
            assert dequantize(fmt, data, (fmt.block_size,)).shape == (fmt.block_size,)
        else:
            with pytest.raises(UnsupportedError, match=f"'blk.0.x' is of type {fmt.name}"):
                dequantize(fmt, data, (fmt.block_size,), name="'blk.0.x'")
