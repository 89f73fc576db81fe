"""``create``: a Modelfile in, a model of that recipe in the register out."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from nanollama.cli.parsers import add_command
from nanollama.errors import UsageError

if TYPE_CHECKING:
    from nanollama.cli.parsers import Subparsers

MAX_BYTES = 16 << 20
"""Longest Modelfile; licences are what is long in them."""

EXAMPLE = """\
a Modelfile:
  FROM smollm2
  PARAMETER temperature 0.3
  SYSTEM You answer in one sentence.

FROM takes a name, a .gguf file or a folder of safetensors, relative to the Modelfile.
"""


def add_create_parser(subparsers: "Subparsers") -> None:
    """Adds ``nanollama create`` to the command line."""
    help = "make a model from a Modelfile"
    parser = add_command(subparsers, "create", create_command, help, examples=EXAMPLE)
    parser.add_argument("name", metavar="NAME", help="what the model is to be called")
    parser.add_argument(
        "-f",
        "--file",
        metavar="FILE",
        default="Modelfile",
        help="the Modelfile, - for standard input (Modelfile)",
    )
    parser.add_argument(
        "-q", "--quantize", metavar="TYPE", help="write the weights in a smaller type, such as q4_K_M or q8_0"
    )


def create_command(args: argparse.Namespace) -> int:
    """Makes the model ``args.name``; what it is based on is fetched if need be."""
    from nanollama.cli.progress import ProgressBar
    from nanollama.creating import adapters_of, base_of, create_model
    from nanollama.quant.plan import file_type
    from nanollama.store.modelfile import decode, parse
    from nanollama.store.names import ModelName
    from nanollama.store.store import Store

    name = ModelName.parse(args.name)
    if args.quantize is not None:
        file_type(args.quantize)
    modelfile = parse(decode(_read(args.file)))
    folder = Path(args.file).parent if Path(args.file).is_file() else Path()  # a pipe lies nowhere
    base = base_of(modelfile.from_, folder)
    recipe = replace(modelfile.recipe, adapters=adapters_of(modelfile.recipe, folder))
    bar, store = ProgressBar(), Store()
    for warning in modelfile.warnings:
        bar.notice(warning)
    if recipe.requires is not None:
        bar.notice(f"REQUIRES {recipe.requires} is recorded: it means a version of Ollama, and nothing here")
    if recipe.adapters:
        bar.notice(
            "ADAPTER is recorded: a model with an adapter can't be run, since adapters can't be applied"
        )
    located = store.locate(base, progress=bar)
    parent = base if located.name is None else str(located.name)
    record = create_model(store, name, located, recipe, parent=parent, quantize=args.quantize, progress=bar)
    print(f"{record.name} is made from {parent}: nanollama run {record.name}")
    return 0


def _read(file: str) -> bytes:
    """The bytes of the Modelfile."""
    if file == "-":
        if sys.stdin is None:
            raise UsageError("standard input is closed: give the Modelfile with -f")
        data = sys.stdin.buffer.read(MAX_BYTES + 1)
    else:
        path = Path(file)
        if path.is_dir():
            raise UsageError(f"{file!r} is a folder: give the path of a Modelfile with -f")
        if not path.exists():  # a pipe, as of <(command), is fine
            raise UsageError(f"there is no Modelfile {file!r}: write one, or give its path with -f")
        with path.open("rb") as opened:
            data = opened.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise UsageError(f"the Modelfile {file!r} has more than {MAX_BYTES >> 20} MiB: is it a Modelfile?")
    return data
