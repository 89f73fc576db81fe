"""Write a GGUF file with the shape of a real model and random weights of one type, for speed measurements.

    python bench/make_shape.py OUT.gguf --vocab-from MODEL.gguf [--shape NAME] [--type Q4_0] [--layers N]

The vocabulary comes from a file at hand (its tokens are never looked at), and the matrices are as high as it
is long; every matrix has the given type, but the output matrix of 4-bit files is Q6_K, as llama.cpp makes it.
"""

import argparse
from pathlib import Path

from nanollama.formats.gguf import GGUFFile
from nanollama.formats.gguf_write import write_gguf
from nanollama.model.families.config import Config
from nanollama.model.random_weights import TYPES, random_tensors
from nanollama.model.registry import family_of_config
from nanollama.model.shapes import SHAPES
from nanollama.model.to_gguf import gguf_of_folder


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out")
    parser.add_argument("--shape", choices=SHAPES, default="tinyllama-1.1b")
    parser.add_argument("--type", choices=TYPES, default="Q4_0")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--vocab-from", required=True, help="a GGUF file")
    args = parser.parse_args()
    with GGUFFile(args.vocab_from) as donor:
        vocabulary = {
            key: value
            for key, value in donor.metadata.items()
            if key.startswith("tokenizer.") and not key.endswith("chat_template")
        }
    values = {**SHAPES[args.shape], "vocab_size": len(vocabulary["tokenizer.ggml.tokens"])}
    if args.layers is not None:
        values["num_hidden_layers"] = args.layers
    family = family_of_config(values)
    config = Config(values, has_tensor=lambda _: False)
    spec = family.from_config(config)
    metadata, tensors = gguf_of_folder(family, spec, config, random_tensors(spec, args.type))
    metadata["general.name"] = f"{args.shape} shape, random {args.type}"
    write_gguf(Path(args.out), {**metadata, **vocabulary}, tensors)


if __name__ == "__main__":
    main()
