"""Taking parameters in: packed GGUF tensors become R8 matrices, exactly, once the queue has been worked off.

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
from nanollama.backends.native.repack import RepackQueue
from nanollama.model.checkpoint import PackedTensor
from nanollama.quant.formats import FORMATS, QuantFormat

COARSE = tuple(f".{name}_proj.weight" for name in ("o", "gate", "up", "down"))
"""Four fifths of the products of SmolLM2. More than half of the error that bytes of activations bring in them
comes from the last layer, and much of the rest from the first."""


class NativePacker:
    """Gives each parameter its place in an arena and queues its copy.

    ``decoded`` names the tensors that had to become float32. Of the ``n_bytes`` packed, ``embedding_bytes``
    are the embedding's and ``expert_bytes`` all experts'.
    """

    def __init__(self, library: Library, queue: RepackQueue, arena: Arena, num_layers: int) -> None:
        self.decoded: list[str] = []
        self.n_bytes = 0
        self.embedding_bytes = 0
        self.expert_bytes = 0
        self._library = library
        self._queue = queue
        self._arena = arena
        # All layers but the first and the last.
        self._inner_layers = tuple(f"model.layers.{i}." for i in range(1, num_layers - 1))

    def matrix(self, parts: Sequence[PackedTensor], biases: Sequence[PackedTensor]) -> NativeWeight:
        formats, kinds = self._formats(parts)
        return NativeWeight(
            matrix=self._packed(parts, formats),
            sizes=tuple(part.shape[0] for part in parts),
            bias=self._bias(biases),
            is_float=all(kind.is_float for kind in kinds),
            is_fine=self._is_fine(kinds, parts),
        )

    def experts(
        self, experts: Sequence[Sequence[PackedTensor]], biases: Sequence[Sequence[PackedTensor]]
    ) -> NativeWeight:
        before = self.n_bytes
        formats, kinds = self._formats([part for parts in experts for part in parts])
        each = len(experts[0])
        weight = NativeWeight(
            experts=[
                self._packed(parts, formats[i * each : (i + 1) * each]) for i, parts in enumerate(experts)
            ],
            sizes=tuple(part.shape[0] for part in experts[0]),
            bias=self._bias([bias for vectors in biases for bias in vectors]),
            is_float=all(kind.is_float for kind in kinds),
            is_fine=self._is_fine(kinds, experts[0]),
        )
        self.expert_bytes += self.n_bytes - before
        return weight

    def _formats(self, parts: Sequence[PackedTensor]) -> tuple[list[QuantFormat], set[Kind]]:
        """What each part is packed from, and the kinds it becomes: all of them multiply floats, or none."""
        formats = [self._format(part) for part in parts]
        kinds = {Kind(self._library.nl_kind_of(fmt.type_id)) for fmt in formats}
        if len({kind.is_float for kind in kinds}) == 1:
            return formats, kinds
        # One multiplication takes its input in one form.
        self.decoded += [
            part.name
            for part, fmt in zip(parts, formats, strict=True)
            if fmt == part.fmt and fmt.name != "F32"
        ]
        return [FORMATS["F32"]] * len(parts), {Kind.F32}

    def _packed(self, parts: Sequence[PackedTensor], formats: Sequence[QuantFormat]) -> Matrix:
        columns = parts[0].shape[1]
        segments, column = (Segment * len(parts))(), 0
        for i, (part, fmt) in enumerate(zip(parts, formats, strict=True)):
            rows, kind = part.shape[0], self._library.nl_kind_of(fmt.type_id)
            address = self._take(self._library.nl_packed_bytes(kind, rows, columns))
            data = part.packed() if fmt == part.fmt else part.float32().view(np.uint8)
            self._queue.add(
                data, address, ggml_type=fmt.type_id, rows=rows, columns=columns, release=part.release
            )
            segments[i] = Segment(data=address, rows=rows, out_column=column, kind=kind)
            column += rows
        return Matrix(segments=segments, segment_count=len(parts), cols=columns)

    def _bias(self, biases: Sequence[PackedTensor]) -> int:
        return self._floats(np.concatenate([b.float32() for b in biases])) if biases else 0

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

    def _is_fine(self, kinds: set[Kind], parts: Sequence[PackedTensor]) -> bool:
        """Whether a merged matrix takes its activations in words."""
        name = parts[0].name
        is_coarse = name.endswith(COARSE) and name.startswith(self._inner_layers)
        return any(kind.is_fine and not (kind is Kind.U4DM and is_coarse) for kind in kinds)
