"""Joining the pieces of a word, best pair first: the loop that all byte-pair encodings share.

Sennrich, Haddow and Birch, "Neural Machine Translation of Rare Words with Subword Units", 2016.
"""

import heapq
from collections.abc import Callable


def join_pieces(word: str, rank: Callable[[str, str], float | None]) -> list[str]:
    """The pieces that ``word`` ends up in, beginning with its characters.

    Neighbours are joined in the order of ``rank``, the smallest first and of equals the leftmost; those with
    the rank ``None`` stay apart. O(n log n) in the length of ``word``: each join offers two new pairs at the
    most.
    """
    pieces = list(word)
    count = len(pieces)
    following = list(range(1, count + 1))
    previous = list(range(-1, count - 1))
    heap: list[tuple[float, int, int]] = []

    def offer(left: int, right: int) -> None:
        pair_rank = rank(pieces[left], pieces[right])
        if pair_rank is not None:
            heapq.heappush(heap, (pair_rank, left, len(pieces[left]) + len(pieces[right])))

    for left in range(count - 1):
        offer(left, left + 1)
    while heap:
        _, left, length = heapq.heappop(heap)
        right = following[left]
        # A piece that was joined to its left neighbour is empty. Pieces only grow, so a pair that is no more
        # shows by its length.
        if not pieces[left] or right == count or len(pieces[left]) + len(pieces[right]) != length:
            continue
        pieces[left] += pieces[right]
        pieces[right] = ""
        after = following[left] = following[right]
        if after < count:
            previous[after] = left
            offer(left, after)
        if previous[left] >= 0:
            offer(previous[left], left)
    return [piece for piece in pieces if piece]
