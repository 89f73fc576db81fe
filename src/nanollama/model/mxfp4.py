"""Experts in MXFP4 as gpt-oss checkpoints store them: blocks and scales in, GGUF blocks out.

A block of 32 numbers is 16 bytes in one tensor and its exponent in another. Two neighbours share a byte
there; in a GGUF block a number shares its byte with the one 16 places on. The numbers don't change.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from nanollama.errors import FormatError
from nanollama.model.checkpoint import PackedTensor
from nanollama.quant.formats import FORMATS

if TYPE_CHECKING:
    from nanollama.model.quantized import StoredTensor

BLOCKS, SCALES = "_blocks", "_scales"
BLOCK = 32


def split_mxfp4(
    tensors: "Mapping[str, StoredTensor]",
) -> "tuple[dict[str, PackedTensor], dict[str, StoredTensor]]":
    """The experts' matrices, ``<layer>.mlp.experts.<i>.<part>.weight`` each, and the tensors that are none.

    Raises:
        FormatError: blocks and scales do not belong together.
    """
    found: dict[str, PackedTensor] = {}
    rest = dict(tensors)
    for name in tensors:
        if not name.endswith(BLOCKS):
            continue
        stem = name.removesuffix(BLOCKS)
        blocks, scales = rest.pop(name), rest.pop(stem + SCALES, None)
        if scales is None or len(blocks.shape) != 4 or blocks.shape != (*scales.shape, BLOCK // 2):
            raise FormatError(
                f"the tensors {stem}{BLOCKS} and {stem}{SCALES} do not fit; expected 16 bytes for each scale"
            )
        if (blocks.dtype, scales.dtype) != ("U8", "U8"):
            raise FormatError(
                f"the tensors {stem}{BLOCKS} and {stem}{SCALES} are of data types {blocks.dtype} and "
                f"{scales.dtype}; expected U8"
            )
        found |= dict(_experts(stem, blocks, scales))
    return found, rest


def _experts(
    stem: str, blocks: "StoredTensor", scales: "StoredTensor"
) -> "Iterator[tuple[str, PackedTensor]]":
    prefix, part = stem.rsplit(".", 1)
    count, rows, per_row, _ = blocks.shape
    for i in range(count):
        name = f"{prefix}.{i}.{part}.weight"
        shape = (rows, per_row * BLOCK)
        yield (
            name,
            PackedTensor(name, FORMATS["MXFP4"], shape, _reader(blocks, scales, i), release=blocks.release),
        )


def _reader(blocks: "StoredTensor", scales: "StoredTensor", index: int) -> Callable[[], memoryview]:
    def read() -> memoryview:
        import numpy as np

        n = blocks.shape[1] * blocks.shape[2]
        pairs = np.frombuffer(blocks.read(), np.uint8).reshape(-1, n, BLOCK // 2)[index]
        numbers = np.stack([pairs & 15, pairs >> 4], axis=-1).reshape(n, BLOCK)
        packed = np.empty((n, 1 + BLOCK // 2), np.uint8)
        packed[:, 0] = np.frombuffer(scales.read(), np.uint8).reshape(-1, n)[index]
        packed[:, 1:] = numbers[:, : BLOCK // 2] | numbers[:, BLOCK // 2 :] << 4
        return packed.reshape(-1).data

    return read
