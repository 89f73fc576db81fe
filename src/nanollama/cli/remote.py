"""Models as ``run`` sees them, loaded here or by a server: flags and the environment in, a ``Model`` out.

A server's model answers as one loaded here would: what the request and the model leave open has the same
defaults. What only the server can decide is refused by name.
"""

import argparse
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from nanollama.client import DEFAULT_PORT, KEY_VARIABLE, OLLAMA_PORT, Address, Client, Described
from nanollama.errors import NanollamaError, UsageError

if TYPE_CHECKING:
    from nanollama.cli.terminal import Terminal
    from nanollama.store.modelfile import Modelfile
    from nanollama.store.recipe import Recipe
    from nanollama.types import ContextPolicy, Message, TextEvent

HOST_VARIABLE = "NANOLLAMA_HOST"
OLLAMA_HOST_VARIABLE = "OLLAMA_HOST"

LAST_SEED = 2**64 - 1
"""What the seed -1 means here; for Ollama's API it would be none."""

_LOOKS_LIKE_ADDRESS = re.compile(
    r"https?://\S*|(localhost|[0-9]+(\.[0-9]+){3})(:[0-9]{1,5})?"
    r"|(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]*):[0-9]{2,5}",
    re.ASCII,
)


class Model(Protocol):
    """What ``run`` and a session need of ``LLM``."""

    @property
    def name(self) -> str: ...

    @property
    def path(self) -> Path | str:
        """The file or folder it comes from, or the server."""
        ...

    @property
    def recipe(self) -> "Recipe": ...

    @property
    def has_template(self) -> bool: ...

    @property
    def n_ctx(self) -> int: ...

    @property
    def device(self) -> str: ...

    @property
    def dtype(self) -> str: ...

    @property
    def load_s(self) -> float: ...

    def events(self, prompt: "str | Sequence[Message]", **options: Any) -> Iterator["TextEvent"]: ...


class RemoteModel:
    """A model in the memory of a server, with the face of ``LLM``."""

    def __init__(self, client: Client, name: str, n_ctx: int | None = None) -> None:
        """Have the server load it.

        Raises:
            NanollamaError: there is no server, or it can't load the model.
        """
        from nanollama.store.recipe import Recipe

        described = client.show(name)
        start = time.perf_counter()
        client.load(name, n_ctx)
        self.load_s = time.perf_counter() - start
        self.name = name
        self.path = str(client.address)
        self.dtype = "on the server"
        self.has_template = bool(described.template)
        self._client = client
        self._asked_ctx = n_ctx
        made = modelfile_of(described)
        self.recipe = made.recipe if made is not None else Recipe()
        self._defaults = _defaults(described, made)
        running = next((each for each in client.running() if made and each.name == made.from_), None)
        self.device = "gpu" if running is not None and running.size_vram else "cpu"
        loaded_ctx = running.n_ctx if running is not None else described.context_length or 0
        self.n_ctx = loaded_ctx if n_ctx is None else n_ctx

    def events(
        self,
        prompt: "str | Sequence[Message]",
        *,
        system: str | None = None,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        context_policy: "ContextPolicy" = "drop_oldest",
        **sampling: Any,
    ) -> Iterator["TextEvent"]:
        """As ``LLM.events``, but for ``logit_bias``, which is refused.

        In a text, the server takes control tokens for what they are if the model has a template.
        """
        from nanollama.types import Message

        check_options(sampling)
        options = {**self._defaults, **sampling}
        if options.get("seed") == -1:
            options["seed"] = LAST_SEED
        given = {"num_predict": max_tokens, "stop": list(stop) or None, "num_ctx": self._asked_ctx}
        options |= {name: value for name, value in given.items() if value is not None}
        body = {"model": self.name, "options": options, "truncate": context_policy == "drop_oldest"}
        if isinstance(prompt, str):
            path, asks = "/api/generate", {"prompt": prompt, "raw": self.has_template}
        elif len(prompt) == 1 and system != "":  # a single question is answered with its token ids
            path, asks = "/api/generate", {"prompt": prompt[0].content, "system": system}
        else:
            turns = [Message("system", system)] if system is not None else []
            messages = [{"role": each.role, "content": each.content} for each in (*turns, *prompt)]
            path, asks = "/api/chat", {"messages": messages}
        return self._client.events(path, body | asks)


def modelfile_of(described: Described) -> "Modelfile | None":
    """The name that the server knows the model by and its recipe, if the server can write them down."""
    from nanollama.store.modelfile import parse

    try:
        return parse(described.modelfile)
    except NanollamaError:
        return None


def _defaults(described: Described, made: "Modelfile | None") -> dict[str, float]:
    """What to send so that not Ollama's defaults but ours stand below the model's own settings.

    Nothing where those aren't known: they would be overruled.
    """
    from nanollama.sampling.params import DEFAULTS, model_settings
    from nanollama.store.parameters import settings_of

    if made is None or described.format != "gguf":
        return {}
    own = {**model_settings(described.info), **settings_of(made.recipe.parameters).sampling}
    return {name: value for name, value in DEFAULTS.items() if name not in own}


def connect(address: Address, model: str, n_ctx: int | None, terminal: "Terminal") -> RemoteModel:
    """The model on a server, with a message while the server reads it."""
    client = open_client(address)
    with terminal.status(f"Loading {model} …"):
        return RemoteModel(client, model, n_ctx)


def open_client(address: Address) -> Client:
    """The server at ``address``, called with the key of the environment."""
    return Client(address, os.environ.get(KEY_VARIABLE) or None)


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse what Ollama's API has no option for."""
    if "logit_bias" in options:
        raise UsageError(
            "--logit-bias can't be sent to a server: leave --server out, or send logit_bias to "
            "/v1/chat/completions"
        )


def check_loading(loading: Mapping[str, Any], address: Address) -> None:
    """Refuse what is decided where a model is loaded; the context window can be asked for."""
    for name in loading:
        if name != "n_ctx":
            raise UsageError(
                f"--{name} is for loading a model, which the server at {address} does: give it to nanollama "
                f"serve, or run without --server and {HOST_VARIABLE}"
            )


def add_server_option(parser: argparse._ActionsContainer, help: str) -> None:
    parser.add_argument("--server", metavar="ADDRESS", nargs="?", const="", help=help)


def with_address(argv: Sequence[str]) -> list[str]:
    """``argv`` in which ``--server`` holds its address. A word that is none belongs to the command.

    >>> with_address(["--server", "smollm2", "--server", "localhost:8000"])
    ['--server=', 'smollm2', '--server=localhost:8000']
    """
    made: list[str] = []
    words = iter(argv)
    for word in words:
        if made and made[-1] == "--server":
            attached = _LOOKS_LIKE_ADDRESS.fullmatch(word)
            made[-1] = f"--server={word}" if attached else "--server="
            if attached:
                continue
        made.append(word)
        if word == "--":
            return [*made, *words]
    if made and made[-1] == "--server":
        made[-1] = "--server="
    return made


def server_address(given: str, environ: Mapping[str, str]) -> Address:
    """The server that ``--server`` means: the address given, that of the environment, or the usual one."""
    for name, text, port in (
        ("--server", given, DEFAULT_PORT),
        (HOST_VARIABLE, environ.get(HOST_VARIABLE, ""), DEFAULT_PORT),
        (OLLAMA_HOST_VARIABLE, environ.get(OLLAMA_HOST_VARIABLE, ""), OLLAMA_PORT),
    ):
        if text := text.strip().strip("\"'"):
            try:
                return Address.parse(text, port)
            except ValueError:
                raise UsageError(
                    f"{name} is {text!r:.80}; expected an address such as localhost:{port} or "
                    f"http://localhost:{port}"
                ) from None
    return Address.parse("127.0.0.1")


def server_of_run(given: str | None, environ: Mapping[str, str]) -> Address | None:
    """The server that ``run`` uses: with ``--server``, or where ``NANOLLAMA_HOST`` names one."""
    named = environ.get(HOST_VARIABLE, "").strip().strip("\"'")
    return server_address(given or "", environ) if given is not None or named else None
