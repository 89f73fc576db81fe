"""Parameters on a torch device: packed tensors of a checkpoint in, weights that multiply and look up out.

Each tensor is decoded and converted once, one at a time. With ``keep_packed`` quantized matrices stay the
bytes they are, and are decoded piece by piece whenever they are used: less memory, and slower.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from nanollama.backends.torch_decode import DECODERS
from nanollama.model.checkpoint import PackedTensor
from nanollama.model.random_weights import RandomTensor
from nanollama.quant.formats import QuantFormat

PIECE = 1 << 24  # weights decoded at a time: 64 MB of float32
HAS_HALF_KERNELS = bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
WIDENED_ROWS = 32
"""From so many rows on, float16 multiplies in float32 on a CPU without instructions for it."""


@dataclass(frozen=True, slots=True)
class DenseWeight:
    """A parameter as numbers: ``data`` is ``[rows, columns]``, of experts ``[experts, rows, columns]``.

    Merged matrices have the rows of their parts in ``sizes``. Biases of experts are ``[experts, rows]``.
    """

    data: Tensor
    sizes: tuple[int, ...] = ()
    bias: Tensor | None = None

    @property
    def nbytes(self) -> int:
        return self.data.nbytes + (0 if self.bias is None else self.bias.nbytes)

    def multiplied(self, x: Tensor) -> Tensor:
        """``x @ w.T + bias`` in the data type of ``x``."""
        if len(x) < WIDENED_ROWS or not _multiplies_slowly(x):
            return functional.linear(x, self.data, self.bias)
        return _by_pieces(x.float(), self.data, self.bias, Tensor.float).to(x.dtype)

    def lookup(self, rows: Tensor) -> Tensor:
        """Rows of the matrix."""
        return self.data[rows]

    def expert(self, index: int | Tensor) -> "DenseWeight":
        """One expert's matrices, or those of several, one after the other."""
        return DenseWeight(self.data[index], self.sizes, None if self.bias is None else self.bias[index])

    def dense(self, dtype: torch.dtype) -> Tensor:
        """All of it as numbers."""
        return self.data.to(dtype)


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """The same as the bytes of one block format, which stand in place of the columns."""

    data: Tensor
    fmt: QuantFormat
    sizes: tuple[int, ...] = ()
    bias: Tensor | None = None

    @property
    def nbytes(self) -> int:
        return self.data.nbytes + (0 if self.bias is None else self.bias.nbytes)

    def multiplied(self, x: Tensor) -> Tensor:
        return _by_pieces(x, self.data, self.bias, lambda piece: self._decoded(piece, x.dtype))

    def lookup(self, rows: Tensor) -> Tensor:
        return self._decoded(self.data[rows], torch.float32)

    def expert(self, index: int | Tensor) -> "PackedWeight":
        bias = None if self.bias is None else self.bias[index]
        return PackedWeight(self.data[index], self.fmt, self.sizes, bias)

    def dense(self, dtype: torch.dtype) -> Tensor:
        return self._decoded(self.data, dtype)

    def _decoded(self, data: Tensor, dtype: torch.dtype) -> Tensor:
        blocks = data.reshape(-1, self.fmt.block_bytes)
        return DECODERS[self.fmt.name](blocks).to(dtype).view(*data.shape[:-1], -1)


TorchWeight = DenseWeight | PackedWeight


def _by_pieces(x: Tensor, data: Tensor, bias: Tensor | None, numbers: Callable[[Tensor], Tensor]) -> Tensor:
    """``x @ w.T + bias`` where ``numbers`` makes rows of ``w`` of rows of ``data``, a piece at a time."""
    pieces = data.split(max(1, PIECE // x.shape[-1]))
    y = torch.cat([functional.linear(x, numbers(piece)) for piece in pieces], dim=-1)
    return y if bias is None else y + bias


def _multiplies_slowly(x: Tensor) -> bool:
    """Whether PyTorch has no matrix kernels for ``x``, and goes over the weights once for each row.

    That is float16 on most CPUs: 11 G multiply-accumulates a second where float32 does 47.
    """
    return x.dtype == torch.float16 and x.device.type == "cpu" and not HAS_HALF_KERNELS


class TorchPacker:
    """Takes parameters in as tensors of one data type on one device; norm weights and sinks stay float32."""

    def __init__(self, device: torch.device, dtype: torch.dtype, *, keep_packed: bool = False) -> None:
        self.device = device
        self.dtype = dtype
        self.keep_packed = keep_packed

    def matrix(self, parts: Sequence[PackedTensor], biases: Sequence[PackedTensor]) -> TorchWeight:
        sizes = tuple(part.shape[0] for part in parts)
        bias = self._vectors(biases) if biases else None
        if (fmt := self._common_format(parts)) is not None:
            return PackedWeight(self._bytes(parts), fmt, sizes, bias)
        data = torch.empty(sum(sizes), parts[0].shape[1], dtype=self.dtype, device=self.device)
        self._fill(data, parts)
        return DenseWeight(data, sizes, bias)

    def experts(
        self, experts: Sequence[Sequence[PackedTensor]], biases: Sequence[Sequence[PackedTensor]]
    ) -> TorchWeight:
        sizes = tuple(part.shape[0] for part in experts[0])
        bias = torch.stack([self._vectors(vectors) for vectors in biases]) if biases else None
        if (fmt := self._common_format([part for parts in experts for part in parts])) is not None:
            return PackedWeight(torch.stack([self._bytes(parts) for parts in experts]), fmt, sizes, bias)
        shape = (len(experts), sum(sizes), experts[0][0].shape[1])
        data = torch.empty(shape, dtype=self.dtype, device=self.device)
        for rows, parts in zip(data, experts, strict=True):
            self._fill(rows, parts)
        return DenseWeight(data, sizes, bias)

    def vector(self, tensor: PackedTensor) -> TorchWeight:
        return DenseWeight(torch.from_numpy(tensor.float32()).to(self.device, torch.float32))

    def embedding(self, tensor: PackedTensor, *, is_head: bool) -> TorchWeight:
        return self.matrix([tensor], [])

    def _common_format(self, parts: Sequence[PackedTensor]) -> QuantFormat | None:
        """The format to keep matrices in that are merged; ``None`` if they are to be decoded."""
        formats = {part.fmt for part in parts}
        keeps = self.keep_packed and len(formats) == 1 and parts[0].fmt.name in DECODERS
        return parts[0].fmt if keeps else None

    def _bytes(self, parts: Sequence[PackedTensor]) -> Tensor:
        # A copy: what the file's memory holds ends when the file is closed.
        return torch.cat([torch.tensor(part.packed()) for part in parts]).to(self.device)

    def _fill(self, data: Tensor, parts: Sequence[PackedTensor]) -> None:
        for rows, part in zip(data.split([part.shape[0] for part in parts]), parts, strict=True):
            if isinstance(part, RandomTensor):
                rows.normal_(0.0, part.spread)
            else:
                rows.copy_(torch.from_numpy(part.float32()))
            part.release()

    def _vectors(self, vectors: Sequence[PackedTensor]) -> Tensor:
        joined = torch.cat([torch.from_numpy(vector.float32()) for vector in vectors])
        return joined.to(self.device, self.dtype)
