"""Taking parameters in: packed GGUF tensors become R8 matrices, exactly, with the pool's threads.

A tensor whose type the kernels can't hold is decoded to float32 first: exact too, and larger. What was
decoded so is listed.
"""

import ctypes
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nanollama.backends.native.library import Kind, Library, Matrix, Segment
from nanollama.backends.native.memory import Arena
from nanollama.backends.native.ops import NativeWeight
from nanollama.backends.native.tape import Pool
from nanollama.model.checkpoint import PackedTensor
from nanollama.quant.formats import FORMATS, QuantFormat


class NativePacker:
    """Packs each parameter into an arena. ``decoded`` names the tensors that had to become float32."""

    def __init__(self, library: Library, pool: Pool, arena: Arena) -> None:
        self.decoded: list[str] = []
        self.n_bytes = 0
        self.embedding_bytes = 0
        self._library = library
        self._pool = pool
        self._arena = arena

    def matrix(self, parts: Sequence[PackedTensor], biases: Sequence[PackedTensor]) -> NativeWeight:
        columns = parts[0].shape[1]
        formats = [self._format(part) for part in parts]
        kinds = [Kind(self._library.nl_kind_of(fmt.type_id)) for fmt in formats]
        if len({kind.is_float for kind in kinds}) > 1:
            # One multiplication takes its input in one form.
            formats = [FORMATS["F32"]] * len(parts)
            kinds = [Kind.F32] * len(parts)
            self.decoded += [part.name for part in parts if part.fmt.name != "F32"]
        segments, column = (Segment * len(parts))(), 0
        for i, (part, fmt, kind) in enumerate(zip(parts, formats, kinds, strict=True)):
            rows = part.shape[0]
            address = self._take(self._library.nl_packed_bytes(kind, rows, columns))
            data = part.packed() if fmt == part.fmt else part.float32().view(np.uint8)
            data = np.ascontiguousarray(data)
            self._pool.retile(fmt.type_id, data.ctypes.data, fmt.nbytes(columns), rows, columns, address)
            segments[i] = Segment(data=address, rows=rows, out_column=column, kind=kind)
            column += rows
            part.release()
        bias = self._floats(np.concatenate([b.float32() for b in biases])) if biases else 0
        sizes = tuple(part.shape[0] for part in parts)
        matrix = Matrix(segments=segments, segment_count=len(parts), cols=columns)
        return NativeWeight(matrix=matrix, sizes=sizes, bias=bias, is_float=kinds[0].is_float)

    def vector(self, tensor: PackedTensor) -> NativeWeight:
        return NativeWeight(address=self._floats(tensor.float32()), size=tensor.shape[0])

    def embedding(self, tensor: PackedTensor, *, is_head: bool) -> NativeWeight:
        before = self.n_bytes
        weight = self.matrix([tensor], [])
        self.embedding_bytes = self.n_bytes - before
        return weight

    def _format(self, tensor: PackedTensor) -> QuantFormat:
        if self._library.nl_packed_bytes(self._library.nl_kind_of(tensor.fmt.type_id), *tensor.shape) >= 0:
            return tensor.fmt
        self.decoded.append(tensor.name)
        return FORMATS["F32"]

    def _take(self, n_bytes: int) -> int:
        self.n_bytes += n_bytes
        return self._arena.take(n_bytes)

    def _floats(self, values: NDArray[np.float32]) -> int:
        address = self._take(values.nbytes)
        ctypes.memmove(address, np.ascontiguousarray(values).ctypes.data, values.nbytes)
        return address
