"""Memory that the kernels work in: zeroed, alive as long as its arena."""

from nanollama.backends.native.library import Library
from nanollama.errors import BackendError

ALIGNMENT = 64
"""Bytes of a cache line."""
PIECE = 64 << 20
"""Bytes asked of the system at a time."""


class Arena:
    """Hands out zeroed memory from the front of large pieces. What is never touched takes no memory.

    Huge pages make reading weights and a long cache faster. Where only the front of each buffer is used they
    cost time instead: the system clears two megabytes at the first touch.
    """

    def __init__(self, library: Library, *, huge_pages: bool) -> None:
        self._library = library
        self._huge_pages = huge_pages
        self._pieces: list[tuple[int, int]] = []  # address and size
        self._free = 0  # bytes left in the last piece

    def take(self, n_bytes: int) -> int:
        """The address of ``n_bytes`` zeroed bytes, aligned to a cache line.

        Raises:
            BackendError: the system has not that much.
        """
        n_bytes = -(-max(n_bytes, 1) // ALIGNMENT) * ALIGNMENT
        if n_bytes > self._free:
            size = max(n_bytes, PIECE)
            start = self._library.nl_arena_alloc(size, self._huge_pages)
            if not start:
                raise BackendError(
                    f"{size / 2**20:.0f} MiB of memory could not be reserved for the model; "
                    "use a smaller --ctx"
                )
            self._pieces.append((start, size))
            self._free = size
        start, size = self._pieces[-1]
        address = start + size - self._free
        self._free -= n_bytes
        return address

    def close(self) -> None:
        """Give the memory back; every address taken from it is invalid from now on."""
        for start, size in self._pieces:
            self._library.nl_arena_free(start, size)
        self._pieces.clear()
        self._free = 0
