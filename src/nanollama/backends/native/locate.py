"""Finding the compiled kernels: the installed library if it fits the sources, else one built now.

Building happens once for each version of the sources. Where there is no compiler the error says how to get
one.
"""

import os
from pathlib import Path

from nanollama.backends.native import build


def installed_path() -> Path:
    """Where the installation puts the library: beside its sources, named after them."""
    return build.SOURCE_DIR / f"kernels-{build.digest()}.so"


def find_library() -> Path:
    """The path of a library that fits the sources, built first if need be.

    Raises:
        BackendError: it has to be built and can't be.
    """
    installed = installed_path()
    if installed.exists():
        return installed
    cached = cache_folder() / installed.name
    if not cached.exists():
        build.build(cached)
    return cached


def cache_folder() -> Path:
    """Where libraries are kept that were built at first use."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "nanollama"
