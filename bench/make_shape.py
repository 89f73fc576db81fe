"""Write a GGUF file with the shape of TinyLlama-1.1B and random weights of one type, for speed measurements.

    python bench/make_shape.py OUT.gguf --type Q4_0 [--layers 22] [--vocab-from MODEL.gguf]

The vocabulary comes from a file at hand (its tokens are never looked at); every matrix has the given type,
but the output matrix of 4-bit files is Q6_K, as llama.cpp makes it.
"""

import argparse
from pathlib import Path

import numpy as np

from nanollama.formats.gguf import GGUFFile
from nanollama.formats.gguf_write import write_gguf
from nanollama.quant.formats import FORMATS, QuantFormat

HIDDEN, INNER, HEADS, KV_HEADS, VOCAB, CONTEXT = 2048, 5632, 32, 4, 32000, 8192
# Where float16 scales lie in a block: offsets in bytes. Everything else may be any byte.
SCALES = {"Q4_0": (0,), "Q8_0": (0,), "Q4_K": (0, 2), "Q6_K": (208,)}


def random_blocks(fmt: QuantFormat, shape: tuple[int, int], seed: int) -> bytes:
    """Random weights of a size near those of a trained model."""
    rng = np.random.default_rng(seed)
    n_blocks = shape[0] * shape[1] // fmt.block_size
    blocks = rng.integers(0, 256, (n_blocks, fmt.block_bytes), dtype=np.uint8)
    for offset in SCALES[fmt.name]:
        largest = {"Q8_0": 4e-4, "Q4_0": 6e-3, "Q4_K": 1e-4, "Q6_K": 1e-5}[fmt.name]
        scales = rng.uniform(largest / 2, largest, n_blocks).astype("<f2")
        blocks[:, offset : offset + 2] = scales[:, None].view(np.uint8)
    return blocks.tobytes()


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out")
    parser.add_argument("--type", choices=sorted(SCALES), default="Q4_0")
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--vocab-from", required=True, help="a GGUF file with at least 32,000 tokens")
    args = parser.parse_args()
    fmt = FORMATS[args.type]
    head = FORMATS["Q6_K"] if fmt.block_bytes * 8 / fmt.block_size < 6 else fmt
    with GGUFFile(args.vocab_from) as donor:
        n_tokens = len(donor.metadata["tokenizer.ggml.tokens"])
        metadata: dict[str, object] = {
            key: value
            for key, value in donor.metadata.items()
            if key.startswith("tokenizer.") and not key.endswith("chat_template")
        }
    assert n_tokens >= VOCAB
    metadata |= {
        "general.architecture": "llama",
        "general.name": f"TinyLlama-1.1B shape, random {args.type}",
        "llama.context_length": CONTEXT,
        "llama.embedding_length": HIDDEN,
        "llama.block_count": args.layers,
        "llama.feed_forward_length": INNER,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": HIDDEN // HEADS,
    }
    kv = HIDDEN * KV_HEADS // HEADS
    matrices: list[tuple[str, tuple[int, int], QuantFormat]] = [
        ("token_embd.weight", (n_tokens, HIDDEN), fmt),
        ("output.weight", (n_tokens, HIDDEN), head),
    ]
    norms = ["output_norm.weight"]
    for i in range(args.layers):
        for name, shape in (
            ("attn_q", (HIDDEN, HIDDEN)),
            ("attn_k", (kv, HIDDEN)),
            ("attn_v", (kv, HIDDEN)),
            ("attn_output", (HIDDEN, HIDDEN)),
            ("ffn_gate", (INNER, HIDDEN)),
            ("ffn_up", (INNER, HIDDEN)),
            ("ffn_down", (HIDDEN, INNER)),
        ):
            matrices.append((f"blk.{i}.{name}.weight", shape, fmt))
        norms += [f"blk.{i}.attn_norm.weight", f"blk.{i}.ffn_norm.weight"]
    ones = np.ones(HIDDEN, dtype=np.float32).tobytes()
    tensors = [
        (name, shape, kind, lambda shape=shape, kind=kind, seed=seed: random_blocks(kind, shape, seed))
        for seed, (name, shape, kind) in enumerate(matrices)
    ]
    tensors += [(name, (HIDDEN,), FORMATS["F32"], ones) for name in norms]
    write_gguf(Path(args.out), metadata, tensors)


if __name__ == "__main__":
    main()
