"""The command ``pull``: names in, complete and verified models on disk, a line for each on stdout out."""

import argparse
from typing import TYPE_CHECKING

from nanollama.cli.parsers import add_command
from nanollama.errors import NanollamaError

if TYPE_CHECKING:
    from nanollama.cli.parsers import Subparsers

EXAMPLES = """\
examples:
  nanollama pull qwen3:0.6b                              a name of the catalogue
  nanollama pull hf.co/bartowski/Llama-3.2-1B-Instruct-GGUF:Q8_0
  nanollama pull https://example.org/models/mine.gguf

HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE and the proxy variables are honoured.
"""


def add_pull_parser(subparsers: "Subparsers") -> None:
    """Adds ``nanollama pull`` to the command line."""
    help = "fetch models, or finish fetching them"
    parser = add_command(subparsers, "pull", pull_command, help, examples=EXAMPLES)
    parser.add_argument(
        "models",
        metavar="MODEL",
        nargs="+",
        help="a name of the catalogue, hf.co/user/repo[:quantization], or the address of a .gguf file",
    )


def pull_command(args: argparse.Namespace) -> int:
    """Fetches ``args.models`` in turn with a progress bar on stderr; a complete model is verified instead.

    One that fails doesn't keep the others from being fetched; the last failure is the command's.
    """
    from nanollama.cli.progress import ProgressBar
    from nanollama.store.store import Store

    store, bar = Store(), ProgressBar()
    failure: NanollamaError | None = None
    for target in args.models:
        try:
            record = store.pull(target, bar)
        except NanollamaError as error:
            if failure is not None:
                bar.notice(f"nanollama: error: {failure}")
            failure = error
        else:
            print(f"{record.name} is complete and verified: {record.path}")
    if failure is not None:
        raise failure
    return 0
