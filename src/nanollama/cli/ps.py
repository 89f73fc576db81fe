"""The commands ``ps`` and ``stop``: parsed flags in, what a server has in memory out, or less of it there."""

import argparse
import json
import os
from dataclasses import asdict
from typing import TYPE_CHECKING

from nanollama.cli.parsers import add_command
from nanollama.cli.remote import add_server_option, modelfile_of, open_client, server_address
from nanollama.cli.terminal import table
from nanollama.client import Client, Running
from nanollama.errors import ModelNotFoundError, NanollamaError
from nanollama.units import age_text, size_text

if TYPE_CHECKING:
    from nanollama.cli.parsers import Subparsers

_SERVER_HELP = "ask the server at ADDRESS (NANOLLAMA_HOST, else localhost:8000)"


def add_ps_parser(subparsers: "Subparsers") -> None:
    """Adds ``nanollama ps`` to the command line."""
    parser = add_command(subparsers, "ps", ps_command, "show the models in the memory of a server")
    parser.add_argument("--json", action="store_true", help="print one JSON array instead of a table")
    add_server_option(parser, _SERVER_HELP)


def add_stop_parser(subparsers: "Subparsers") -> None:
    """Adds ``nanollama stop`` to the command line."""
    parser = add_command(subparsers, "stop", stop_command, "take a model out of the memory of a server")
    parser.add_argument("model", metavar="MODEL", help="the name of a model, as ps shows it")
    add_server_option(parser, _SERVER_HELP)


def ps_command(args: argparse.Namespace) -> int:
    """Prints the models in memory, latest used first."""
    running = _client(args).running()
    if args.json:
        print(json.dumps([asdict(each) for each in running], indent=2))
        return 0
    rows: list[tuple[str, ...]] = [("NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL")]
    for each in running:
        short_id = each.digest.removeprefix("sha256:")[:12] or "-"
        where, until = processor_text(each), until_text(each.expires_s)
        rows.append((each.name, short_id, size_text(each.size), where, str(each.n_ctx), until))
    print(table(rows))
    return 0


def stop_command(args: argparse.Namespace) -> int:
    """Unloads one model; an answer that is being made is finished first."""
    client = _client(args)
    try:
        made = modelfile_of(client.show(args.model))
    except ModelNotFoundError:
        raise ModelNotFoundError(
            f"the server at {client.address} has no model {args.model}: nanollama ps shows what is in memory"
        ) from None
    name = made.from_ if made is not None else args.model
    before = client.running()
    client.unload(args.model)
    # A copy of a model is in memory under the other name.
    if name not in {each.name for each in before} and len(client.running()) == len(before):
        raise NanollamaError(f"{name} is not in the memory of {client.address}: nanollama ps shows what is")
    print(f"stopped {name}")
    return 0


def processor_text(running: Running) -> str:
    """Where a model is, as Ollama writes it: ``100% GPU``, ``25%/75% CPU/GPU``."""
    if running.size_vram <= 0:
        return "100% CPU"
    if running.size_vram >= running.size:
        return "100% GPU"
    gpu = round(100 * running.size_vram / running.size)
    return f"{100 - gpu}%/{gpu}% CPU/GPU"


def until_text(seconds: float | None) -> str:
    """``4 minutes from now``, ``Forever``, or ``Stopping...`` for what only waits for its last answer."""
    if seconds is None:
        return "Forever"
    if seconds < 1:
        return "Stopping..."
    return age_text(seconds).replace(" ago", " from now")


def _client(args: argparse.Namespace) -> Client:
    return open_client(server_address(args.server or "", os.environ))
