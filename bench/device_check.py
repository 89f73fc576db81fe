"""The torch backend on a device against the slowest decoder: toys of every structure, in every data type.

PYTHONPATH=src:tests python bench/device_check.py cuda
"""

import sys

import numpy as np
import torch

from nanollama import reference
from nanollama.backends.ops import ModelInput, SequenceInput
from nanollama.backends.torch_backend import TorchBackend, choose_device
from toys import SPECS, VOCAB, make_toy

LIMITS = {"float32": 1e-3, "float16": 5e-3, "bfloat16": 4e-2}


def main() -> None:
    """Print the relative error of each toy and type; exit 1 if one is too large."""
    device = choose_device(sys.argv[1] if len(sys.argv) > 1 else "auto")
    torch.backends.cuda.matmul.allow_tf32 = False
    failed = False
    for kind in SPECS:
        toy = make_toy(kind)
        ids = tuple(int(i) for i in np.random.default_rng(1).integers(0, VOCAB, 75))
        params = {name: torch.from_numpy(array) for name, array in toy.arrays.items()}
        expected = reference.logits(toy.spec, params, ids).numpy()
        for dtype, limit in LIMITS.items():
            backend = TorchBackend(toy.spec, toy.tensors, device=device, dtype=dtype, cache_tokens=512)
            rows = []
            for start, end in ((0, 40), (40, 74), (74, 75)):  # a prompt in two chunks, and one decoded token
                sequence = SequenceInput(end - start, start, (4, 9, 1)[: -(-end // 32)])
                rows.append(backend.step(ModelInput(ids[start:end], (sequence,), tuple(range(end - start)))))
            error = np.sqrt(np.mean((np.concatenate(rows) - expected) ** 2) / np.mean(expected**2))
            failed |= not error < limit
            print(f"{device} {kind:25} {dtype:9} error {error:.2e} {'ok' if error < limit else 'TOO LARGE'}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
