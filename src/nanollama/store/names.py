"""Model names and digests: text from outside in, values safe to compare and to build a path from out.

Every part of a ``ModelName`` is lower-case ASCII and can be one path component on any file system: it has no
separator, does not begin or end with a dot, and is not a reserved device name. A ``Digest`` is 64 hex digits.
"""

import re
from dataclasses import dataclass
from typing import Self

from nanollama.errors import FormatError, UsageError

_PART = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,78}[a-z0-9_-])?", re.ASCII)
_HOST = re.compile(
    r"(?=.{1,253}\Z)(?:localhost|[a-z0-9-]{1,63}(?:\.[a-z0-9-]{1,63})+)(?::[0-9]{1,5})?", re.ASCII
)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)
_RESERVED = frozenset(
    ["con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))]
)
"""Names that Windows gives to devices, with or without an ending such as ``con.gguf``."""

_MAX_TEXT = 512
OLLAMA_HOST = "registry.ollama.ai"
"""Where Ollama's short names come from. Clients may spell it out: a name with it is the one without."""
DEFAULT_NAMESPACE = "library"
DEFAULT_TAG = "latest"


@dataclass(frozen=True, slots=True)
class ModelName:
    """``[host/][namespace/]model[:tag]``. Names that differ only in case are the same name."""

    host: str | None
    namespace: str
    model: str
    tag: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """The name that ``text`` spells. Raises ``UsageError`` for anything else."""
        if len(text) > _MAX_TEXT or not text.isascii():
            raise _bad_name(text)
        path, has_tag, tag = text.lower().partition(":")
        host: str | None = None
        if has_tag and "/" in tag:  # the colon belonged to the port of a host
            port, _, rest = tag.partition("/")
            path, has_tag, tag = rest.partition(":")
            host, path = f"{text.lower().partition(':')[0]}:{port}", path
        parts = path.split("/")
        if host is None and len(parts) == 3:
            host, *parts = parts
        if host == OLLAMA_HOST:
            host = None
        if len(parts) == 1:
            parts = [DEFAULT_NAMESPACE, *parts]
        if len(parts) != 2 or (host is not None and not _HOST.fullmatch(host)):
            raise _bad_name(text)
        name = cls(host, parts[0], parts[1], tag if has_tag else DEFAULT_TAG)
        if not all(_is_part(part) for part in (name.namespace, name.model, name.tag)):
            raise _bad_name(text)
        return name

    def __str__(self) -> str:
        """The shortest text that parses to this name; the tag is always shown."""
        host = f"{self.host}/" if self.host else ""
        hides_namespace = self.namespace == DEFAULT_NAMESPACE and not host
        return f"{host}{'' if hides_namespace else self.namespace + '/'}{self.model}:{self.tag}"


@dataclass(frozen=True, slots=True)
class Digest:
    """A SHA-256 digest in the form ``sha256:`` and 64 lower-case hex digits."""

    text: str

    def __post_init__(self) -> None:
        if not _DIGEST.fullmatch(self.text):
            shown = repr(self.text[:80])
            raise FormatError(f"{shown} is not a digest: expected sha256: and 64 lower-case hex digits")

    @property
    def hex(self) -> str:
        return self.text.removeprefix("sha256:")

    @property
    def short(self) -> str:
        """The first 12 hex digits, as ``nanollama list`` shows them."""
        return self.hex[:12]


def _is_part(text: str) -> bool:
    return _PART.fullmatch(text) is not None and ".." not in text and text.partition(".")[0] not in _RESERVED


def _bad_name(text: str) -> UsageError:
    shown = ascii(text if len(text) <= 80 else text[:80] + "...")
    return UsageError(
        f"{shown} is not a model name: expected [namespace/]model[:tag] in letters, digits, '.', '_' and '-' "
        "(for instance smollm2:135m)"
    )
