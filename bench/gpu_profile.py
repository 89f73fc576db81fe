"""Where a decode step on a GPU spends its time: kernels by their share, from torch's profiler.

PYTHONPATH=src python bench/gpu_profile.py [--shape llama-3.1-8b] [--batch 1] [--context 128]
"""

import argparse

import torch
from torch.profiler import ProfilerActivity, profile

from nanollama.backends.ops import ModelInput, SequenceInput
from nanollama.backends.torch_backend import TorchBackend
from nanollama.model.random_weights import random_tensors
from nanollama.model.shapes import shape_spec

STEPS = 20


def main() -> None:
    """Profile twenty steps and print the kernels that took longest."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="llama-3.1-8b")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--context", type=int, default=128)
    args = parser.parse_args()
    spec = shape_spec(args.shape)
    backend = TorchBackend(
        spec,
        random_tensors(spec, "BF16"),
        device="cuda",
        dtype="bfloat16",
        cache_tokens=args.batch * 512,
        compile=True,
    )
    blocks = -(-(args.context + 1) // backend.block_tokens)
    sequences = tuple(
        SequenceInput(1, args.context, tuple(range(i * blocks, (i + 1) * blocks))) for i in range(args.batch)
    )
    step = ModelInput((1,) * args.batch, sequences, tuple(range(args.batch)))
    for _ in range(5):
        backend.best(step)
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as seen:
        for _ in range(STEPS):
            backend.best(step)
        torch.cuda.synchronize()
    print(seen.key_averages().table(sort_by="self_cuda_time_total", row_limit=18, max_name_column_width=70))
    backend.close()


if __name__ == "__main__":
    main()
