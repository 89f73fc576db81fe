"""The findable blocks by what they follow: the key before it and the next tokens in, the closest block out.

A chain of keys finds whole blocks only: one token more or less is another key. Prompts seldom end where a
block does, so behind the last block that was found the tokens themselves are compared.
"""

from itertools import takewhile
from operator import eq, itemgetter

MIN_COMMON = 4
"""Shared tokens below which a block is not worth its copy: they are computed as fast."""


class Children:
    """Blocks under the key of the block before them (of the first: the root) and their first tokens.

    Under the first ``MIN_COMMON`` tokens, so that of the thousands of first blocks of a busy cache only those
    are compared that can be of use.
    """

    def __init__(self) -> None:
        self._tokens: dict[tuple[bytes, tuple[int, ...]], dict[int, tuple[int, ...]]] = {}
        self._place_of: dict[int, tuple[bytes, tuple[int, ...]]] = {}

    def add(self, block: int, parent: bytes, tokens: tuple[int, ...]) -> None:
        """Let ``block`` be found: it holds ``tokens`` and follows the block whose key is ``parent``."""
        place = parent, tokens[:MIN_COMMON]
        self._tokens.setdefault(place, {})[block] = tokens
        self._place_of[block] = place

    def remove(self, block: int) -> None:
        """Forget a block."""
        place = self._place_of.pop(block)
        del self._tokens[place][block]
        if not self._tokens[place]:
            del self._tokens[place]

    def clear(self) -> None:
        """Forget all blocks."""
        self._tokens.clear()
        self._place_of.clear()

    def closest(self, parent: bytes, tokens: tuple[int, ...]) -> tuple[int, int] | None:
        """The block behind ``parent`` that begins with most of ``tokens``, and with how many.

        ``None`` if that is fewer than ``MIN_COMMON``. Of equals the one that was added first.
        """
        if len(tokens) < MIN_COMMON:
            return None
        there = self._tokens.get((parent, tokens[:MIN_COMMON]), {})
        return max(
            ((block, _n_common(held, tokens)) for block, held in there.items()),
            key=itemgetter(1),
            default=None,
        )

    def contents(self) -> dict[int, tuple[bytes, tuple[int, ...]]]:
        """The parent and the tokens of each block; asserts that it can be found as such. For tests."""
        found = {
            block: (parent, tokens)
            for (parent, first), there in self._tokens.items()
            for block, tokens in there.items()
            if first == tokens[:MIN_COMMON] and self._place_of.get(block) == (parent, first)
        }
        assert len(found) == len(self._place_of) == sum(map(len, self._tokens.values())), "a child is lost"
        assert all(self._tokens.values()), "a parent without children is kept"
        return found


def _n_common(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """How many tokens both begin with."""
    return sum(takewhile(bool, map(eq, one, other)))
