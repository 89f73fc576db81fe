"""Random weights for measurements: a ModelSpec and a tensor type in, packed tensors of that model out.

Nothing is made until a backend takes a tensor in, one at a time; a backend that can draws the numbers where
they will lie instead of reading bytes. Matrices have the spread that keeps activations near 1, norms are 1
and biases 0.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from nanollama.errors import UsageError
from nanollama.model.checkpoint import PackedTensor
from nanollama.model.spec import ModelSpec
from nanollama.model.weights import parameter_shapes
from nanollama.quant.formats import FORMATS, QuantFormat
from nanollama.quant.plan import Stored, target_format

TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")
"""What random weights can be."""

_CHUNK = 1 << 20  # blocks drawn at a time
_SCALES: dict[str, tuple[tuple[int, float], ...]] = {
    "Q8_0": ((0, 1 / 74),),
    "Q4_0": ((0, 1 / 4.6),),
    "Q4_1": ((0, 1 / 4.6), (2, -7.5 / 4.6)),
    "Q5_0": ((0, 1 / 9.2),),
    "Q5_1": ((0, 1 / 9.2), (2, -15.5 / 9.2)),
    "Q4_K": ((0, 1 / 260), (2, 7.5 / 260)),
    "Q5_K": ((0, 1 / 537), (2, 15.5 / 537)),
    "Q6_K": ((208, 1 / 1370),),
}
"""Where float16 numbers lie in a block, and what makes the weights' spread 1 there if all other bytes are
random: one over the spread of the codes, and minus their mean times that."""


@dataclass(frozen=True, slots=True)
class RandomTensor(PackedTensor):
    """A matrix of random numbers around 0; ``spread`` is their standard deviation."""

    spread: float = 1.0


def random_tensors(spec: ModelSpec, wanted: str) -> Mapping[str, PackedTensor]:
    """All parameters of ``spec``, matrices of the type ``wanted`` or of the next larger one that fits.

    As in files, the output matrix has six bits or more. Raises UsageError for a type that is not in TYPES.
    """
    if wanted not in TYPES:
        raise UsageError(f"the weights' type is {wanted!r}; expected one of {', '.join(TYPES)}")
    shapes = parameter_shapes(spec)
    head = "lm_head.weight" if "lm_head.weight" in shapes else "model.embed_tokens.weight"
    return {name: _tensor(name, shape, wanted, is_head=name == head) for name, shape in shapes.items()}


def _tensor(name: str, shape: tuple[int, ...], wanted: str, *, is_head: bool) -> PackedTensor:
    if len(shape) == 1:
        value = 1.0 if name.endswith("norm.weight") else 0.0
        return PackedTensor(name, FORMATS["F32"], shape, lambda: _constant(value, shape[0]))
    fmt = target_format(Stored(name, shape, FORMATS[wanted]), wanted, is_head=is_head)
    spread = 1.0 if name == "model.embed_tokens.weight" else shape[-1] ** -0.5
    seed = sum(name.encode())
    return RandomTensor(
        name, fmt, shape, lambda: random_blocks(fmt, prod(shape), spread, seed), spread=spread
    )


def _constant(value: float, n: int) -> memoryview:
    import numpy as np

    return np.full(n, value, np.float32).data.cast("B")


def random_blocks(fmt: QuantFormat, n_weights: int, spread: float, seed: int) -> memoryview:
    """The bytes of ``n_weights`` random weights in one of TYPES."""
    import numpy as np

    rng = np.random.default_rng(seed)
    n_blocks = n_weights // fmt.block_size
    blocks = np.empty((n_blocks, fmt.block_bytes), np.uint8)
    for start in range(0, n_blocks, _CHUNK):
        part = blocks[start : start + _CHUNK]
        if fmt.block_size == 1:
            numbers = rng.standard_normal(len(part), np.float32) * np.float32(spread)
            stored = {"F32": "<f4", "F16": "<f2", "BF16": "<f4"}[fmt.name]
            # A bfloat16 number is the upper half of a float32.
            part[...] = numbers.astype(stored).view(np.uint8).reshape(len(part), -1)[:, -fmt.block_bytes :]
            continue
        part[...] = np.frombuffer(rng.bytes(part.size), np.uint8).reshape(part.shape)
        for offset, factor in _SCALES[fmt.name]:
            part[:, offset : offset + 2] = np.array([spread * factor], "<f2").view(np.uint8)
    return blocks.data.cast("B")
