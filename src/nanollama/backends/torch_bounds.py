"""What a torch device can do: a device and a data type in, bytes and multiply-accumulates a second out."""

import statistics
import time
from collections.abc import Callable

import torch

from nanollama.backends.torch_weights import DenseWeight

COPIED = {"cuda": 1 << 30, "mps": 1 << 28, "cpu": 1 << 28}
"""Bytes of a copy, more than any cache holds."""
SIZES = {"cuda": 8192, "mps": 2048, "cpu": 1024}
"""Rows and columns of a product."""
REPEATS = 7


def bandwidth(device: str) -> float:
    """GB/s, read and written together, at which the device copies its own memory."""
    source = torch.randint(0, 256, (COPIED[device],), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _seconds(lambda: target.copy_(source), device) / 1e9


def mac_rate(device: str, dtype: str) -> float:
    """Multiply-accumulates a second in a product of two large matrices, made as the backend makes its own."""
    n = SIZES[device]
    x, data = (torch.randn(n, n, device=device).to(getattr(torch, dtype)) for _ in range(2))
    weight = DenseWeight(data)
    return float(n**3 / _seconds(lambda: weight.multiplied(x), device))


def _seconds(work: Callable[[], object], device: str) -> float:
    """The median time of some work, after one run that does not count."""
    times = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        work()
        if device != "cpu":
            getattr(torch, device).synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])
