"""Error of quantized weights against float32, ours and llama.cpp's, over the tensors of real models.

    python bench/quantize_error.py MODEL.gguf ... [--types Q4_0,Q4_K] [--max-weights 8000000]

Needs llama-cpp-python (a benchmark dependency, not installed by the scripts). The float32 source are the
decoded weights of each matrix (of the first ``--max-weights``, in blocks of 256), and random weights with
a normal and with a heavy-tailed distribution. Both encoders get the same array, one thread and no importance
matrix, and both results are decoded by us. Prints a table in Markdown.
"""

import argparse
import ctypes
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from nanollama.formats.gguf import GGUFFile
from nanollama.quant.decode import dequantize
from nanollama.quant.encode import quantize
from nanollama.quant.formats import FORMATS, QuantFormat

TYPES = ("Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_1", "Q4_0")
RANDOM_SHAPE = (1024, 2048)

Encoder = Callable[[QuantFormat, NDArray[np.float32]], NDArray[np.uint8]]


@dataclass
class Tally:
    """Squared errors and seconds of one encoder over one source."""

    squares: list[float] = field(default_factory=list)
    weights: int = 0
    seconds: float = 0.0

    @property
    def rms(self) -> float:
        return (sum(self.squares) / self.weights) ** 0.5


def peer_encoder() -> Encoder:
    """llama.cpp's own quantizer, from the library that llama-cpp-python brings."""
    folder = Path(llama_cpp.__file__).parent / "lib"
    ggml = ctypes.CDLL(str(next(folder.glob("libggml-base.*"))))
    chunk = ggml.ggml_quantize_chunk
    chunk.restype = ctypes.c_size_t
    chunk.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]

    def encode(fmt: QuantFormat, weights: NDArray[np.float32]) -> NDArray[np.uint8]:
        out = np.empty(fmt.nbytes(weights.size), np.uint8)
        rows, columns = weights.shape
        if chunk(fmt.type_id, weights.ctypes.data, out.ctypes.data, 0, rows, columns, None) != out.nbytes:
            raise RuntimeError(f"llama.cpp wrote another number of bytes for {fmt.name}")
        return out

    return encode


def sources(models: list[str], max_weights: int) -> Iterator[tuple[str, Iterator[NDArray[np.float32]]]]:
    """Name and float32 arrays ``[rows, 256]`` of each source."""
    for model in models:
        yield Path(model).stem, matrices(model, max_weights)
    rng = np.random.default_rng(0)
    yield "normal", iter([rng.standard_normal(RANDOM_SHAPE).astype(np.float32).reshape(-1, 256) * 0.02])
    yield (
        "Student's t, 3 df",
        iter([rng.standard_t(3, RANDOM_SHAPE).astype(np.float32).reshape(-1, 256) * 0.02]),
    )


def matrices(model: str, max_weights: int) -> Iterator[NDArray[np.float32]]:
    with GGUFFile(model) as file:
        for info in file.tensors.values():
            if len(info.shape) == 2:
                rows = max(1, min(info.shape[0], max_weights // info.shape[1]))
                data = file.data(info.name)[: info.fmt.nbytes(rows * info.shape[1])]
                weights = dequantize(info.fmt, data, (rows * info.shape[1],))
                yield weights[: weights.size // 256 * 256].reshape(-1, 256)


def measure(encode: Encoder, fmt: QuantFormat, weights: NDArray[np.float32], tally: Tally) -> None:
    start = time.perf_counter()
    packed = encode(fmt, weights)
    tally.seconds += time.perf_counter() - start
    residue = dequantize(fmt, packed, weights.shape)
    residue -= weights
    tally.squares.append(float(np.einsum("ij,ij->", residue, residue, dtype=np.float64)))
    tally.weights += weights.size


def main() -> None:
    """Measure and print one row a source and type."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+")
    parser.add_argument("--types", default=",".join(TYPES))
    parser.add_argument("--max-weights", type=int, default=8_000_000)
    args = parser.parse_args()
    names = args.types.split(",")
    peer = peer_encoder()
    columns = (
        "source",
        "type",
        "RMS error, ours",
        "llama.cpp",
        "ratio",
        "tensors worse",
        "ns a weight, ours",
    )
    print(f"| {' | '.join((*columns, 'llama.cpp'))} |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for source, arrays in sources(args.models, args.max_weights):
        tallies = {name: (Tally(), Tally()) for name in names}
        for weights in arrays:
            for name in names:
                ours, theirs = tallies[name]
                measure(quantize, FORMATS[name], weights, ours)
                measure(peer, FORMATS[name], weights, theirs)
        for name, (ours, theirs) in tallies.items():
            worse = sum(a > b for a, b in zip(ours.squares, theirs.squares, strict=True))
            speed = [f"{1e9 * tally.seconds / tally.weights:.0f}" for tally in (ours, theirs)]
            print(
                f"| {source} | {name} | {ours.rms:.4g} | {theirs.rms:.4g} | {ours.rms / theirs.rms:.3f} | "
                f"{worse} of {len(ours.squares)} | {speed[0]} | {speed[1]} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
