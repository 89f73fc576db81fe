"""``serve``: flags in, a server with OpenAI's API out, until it is told to stop."""

import argparse
import os
import re
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from nanollama.cli.options import CONTEXT, LOADING, Expected, Setting, add_settings, given, whole
from nanollama.cli.parsers import MODEL_HELP
from nanollama.client import KEY_VARIABLE
from nanollama.errors import UsageError
from nanollama.types import DEFAULT_MODEL

if TYPE_CHECKING:
    from nanollama.llm import LLM
    from nanollama.server.settings import ServerSettings
    from nanollama.server.source import Found

_DURATION = re.compile(r"([0-9]{1,9})(s|m|h|)", re.ASCII)
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600}
CACHED_WINDOWS = 4


def duration(text: str) -> float:
    """``90``, ``90s``, ``5m`` or ``2h`` in seconds; ``forever`` is infinite."""
    if text == "forever":
        return float("inf")
    found = _DURATION.fullmatch(text)
    if found is None:
        raise Expected("a time such as 30s, 5m or 2h, or forever")
    return float(int(found[1]) * _SECONDS[found[2]])


def text(given_text: str) -> str:
    if not given_text:
        raise Expected("a text that is not empty")
    return given_text


SERVING = (
    Setting("host", ("--host",), "ADDRESS", "listen on ADDRESS (127.0.0.1, this machine only)", text),
    Setting(
        "port", ("--port",), "N", "listen on port N (8000); 0 takes a free one", partial(whole, high=65535)
    ),
    Setting(
        "max_seqs",
        ("--max-seqs",),
        "N",
        "generate N answers at a time in each model (32)",
        partial(whole, low=1, high=1024),
    ),
    Setting(
        "max_queue",
        ("--max-queue",),
        "N",
        "let N more wait before new ones are refused (128)",
        partial(whole, high=65536),
    ),
    Setting(
        "max_models",
        ("--max-models",),
        "N",
        "keep N models in memory at a time (4)",
        partial(whole, low=1, high=1024),
    ),
    Setting(
        "keep_alive_s",
        ("--keep-alive",),
        "TIME",
        "unload a model that a request loaded after TIME without one (5m); forever keeps it",
        duration,
    ),
)


def add_serve_parser(subparsers: "argparse._SubParsersAction[Any]") -> None:
    parser = subparsers.add_parser(
        "serve",
        help="answer requests in the form of OpenAI's and Ollama's APIs",
        usage="nanollama serve [MODEL] [OPTIONS]",
        description="Serve the models of this machine over HTTP. MODEL is loaded at once and stays; other "
        "models are loaded when a request names them.",
        epilog=f"A key can also be given in the environment variable {KEY_VARIABLE}, where other users of "
        "this machine don't see it. docs/reference/ollama.md lists the variables that set the rest.",
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help=MODEL_HELP)
    add_serving_options(parser)
    add_settings(parser.add_argument_group("how to load"), (*LOADING, CONTEXT))
    parser.set_defaults(handler=serve_command)


def add_serving_options(parser: argparse.ArgumentParser) -> None:
    """The options that only serving has."""
    add_settings(parser, SERVING)
    parser.add_argument(
        "--api-key",
        dest="api_keys",
        metavar="KEY",
        action="append",
        default=[],
        help="ask callers for KEY; can be repeated",
    )
    parser.add_argument("--insecure", action="store_true", help="listen on other addresses without a key")
    parser.add_argument(
        "--allow-host",
        dest="hosts",
        metavar="NAME",
        action="append",
        default=[],
        help="answer to this name too, such as that of this machine; can be repeated",
    )
    parser.add_argument(
        "--allow-origin",
        dest="origins",
        metavar="ORIGIN",
        action="append",
        default=[],
        help="let pages from ORIGIN call, such as https://example.org; * stands for any part",
    )
    parser.add_argument(
        "--allow-pull",
        dest="pull_hosts",
        metavar="HOST",
        action="append",
        default=[],
        help="let requests pull models from HOST, not only from the catalogue and hf.co; * is any host; can "
        "be repeated",
    )


def add_flat_serve_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``nanollama --serve``, the form without a command."""
    parser.add_argument(
        "--serve", action="store_true", help="answer requests in the form of OpenAI's and Ollama's APIs"
    )
    parser.add_argument("--model", metavar="MODEL", default=DEFAULT_MODEL, help=MODEL_HELP)
    add_serving_options(parser)
    add_settings(parser.add_argument_group("how to load"), (*LOADING, CONTEXT))
    parser.set_defaults(handler=serve_command)


def serve_command(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or Ctrl+C."""
    settings = serve_settings(args)
    if settings.model is not None:
        fetch(settings.model)

    from nanollama.server.app import build_app
    from nanollama.server.listen import Listener
    from nanollama.server.pool import ModelPool, free_memory
    from nanollama.server.services import make_services
    from nanollama.server.settings import Limits
    from nanollama.server.source import StoreSource
    from nanollama.store.plans import Hosts

    source = StoreSource(settings.model)
    pool = ModelPool(
        source,
        partial(load_model, settings),
        served=settings.model,
        max_models=settings.max_models,
        keep_alive_s=settings.keep_alive_s,
        free_bytes=free_memory,
    )
    services = make_services(settings, Limits(), pool)
    hosts = Hosts(anywhere="*" in args.pull_hosts, names=frozenset(args.pull_hosts))
    app = build_app(services, source.store, hosts)
    Listener(app, services, partial(announce, settings)).listen()
    return 0


def serve_settings(args: argparse.Namespace) -> "ServerSettings":
    """The checked settings. Raises ``UsageError``."""
    from nanollama.server.environment import from_environment
    from nanollama.server.settings import ServerSettings

    flags = given(args, SERVING)
    if flags.get("keep_alive_s") == float("inf"):
        flags["keep_alive_s"] = None
    values = {**from_environment(os.environ), **flags}
    loading = given(args, (*LOADING, CONTEXT))
    if "n_ctx" in values:
        loading = {"n_ctx": values.pop("n_ctx"), **loading}
    origins = args.origins or values.pop("origins", ())
    values.pop("origins", None)
    variable = os.environ.get(KEY_VARIABLE)
    keys = [*args.api_keys, *([variable] if variable else [])]
    for origin in origins:
        if origin != "*" and not re.fullmatch(r"[a-z*][a-z0-9+.*-]*://[^/\s]+", origin, re.ASCII):
            raise UsageError(f"--allow-origin must be an origin such as https://example.org, not {origin!r}")
    return ServerSettings(
        model=args.model,
        api_keys=tuple(keys),
        insecure=args.insecure,
        hosts=tuple(args.hosts),
        origins=tuple(origins),
        loading=loading,
        **values,
    )


def fetch(model: str) -> None:
    """Have the operator's model on this machine; what requests name is never fetched."""
    from nanollama.cli.progress import ProgressBar
    from nanollama.store.store import locate

    locate(model, progress=ProgressBar())


def load_model(settings: "ServerSettings", found: "Found", n_ctx: int | None = None) -> "LLM":
    """Load a model of this machine, with a window of at least ``n_ctx`` tokens where a request asks for it.

    What has to be said goes to standard error.
    """
    from nanollama.llm import DEFAULT_MAX_CONTEXT, LLM
    from nanollama.store.parameters import settings_of

    def notice(text: str) -> None:
        print(f"{found.id}: {text}", file=sys.stderr)

    # Room for a few full windows, which many short answers share. What is not used takes no memory on a CPU.
    loading = dict(settings.loading)
    cache_tokens = CACHED_WINDOWS * loading.get("n_ctx", DEFAULT_MAX_CONTEXT)
    # A request that needs less than the usual window uses a part of it. A wider one is there once, and not
    # several times.
    usual = loading.get("n_ctx") or settings_of(found.recipe.parameters).n_ctx or DEFAULT_MAX_CONTEXT
    if n_ctx is not None and n_ctx > usual:
        loading["n_ctx"] = usual = n_ctx
    cache_tokens = max(cache_tokens, usual)
    return LLM(
        found.argument,
        max_sequences=settings.max_seqs,
        cache_tokens=cache_tokens,
        notice=notice,
        **loading,
    )


def announce(settings: "ServerSettings", port: int) -> None:
    """Say where the server is, once it takes connections."""
    host = settings.host
    shown = f"[{host}]" if ":" in host and not host.startswith("[") else host
    local = "localhost" if settings.is_local else shown
    print(f"Starting server on http://{shown}:{port}")
    print(f"OpenAI-compatible API: http://{local}:{port}/v1/chat/completions")
    print(f"Ollama-compatible API: http://{local}:{port}/api/chat", flush=True)
