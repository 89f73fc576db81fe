"""Added tokens in a text: text and marked spans go in, token ids and the plain text between them come out.

A longer token wins over a shorter one wherever they overlap, even if the shorter begins earlier; of equally
long ones the leftmost wins (llama.cpp's order). A control token is found only where it is asked for and
never touches a literal span.
"""

import heapq
import re
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence

from nanollama.text.vocab import AddedFlags

Span = tuple[int, int]
_Match = tuple[int, int, int]  # start, end, token id


class SpecialMatcher:
    """Finds control and user-defined tokens in a text."""

    def __init__(
        self,
        control: Mapping[str, int],
        user_defined: Mapping[str, int],
        flags: Mapping[int, AddedFlags],
    ) -> None:
        self._control = control
        self._flags = flags
        self._without_control = _Index(user_defined)
        self._with_control = _Index({**user_defined, **control})

    def split(self, text: str, literal: Sequence[Span], parse_special: bool) -> list[int | str]:
        """``text`` as token ids and non-empty plain pieces, in order; no two plain pieces are neighbours."""
        matches = self._matches(text, literal, parse_special)
        parts: list[int | str] = []
        position = 0
        for index, (start, end, token_id) in enumerate(matches):
            flags = self._flags.get(token_id)
            before = text[position:start]
            if flags is not None and flags.lstrip:
                before = before.rstrip()
            if before:
                parts.append(before)
            parts.append(token_id)
            position = end
            if flags is not None and flags.rstrip:
                limit = matches[index + 1][0] if index + 1 < len(matches) else len(text)
                position = limit - len(text[end:limit].lstrip())
        if position < len(text):
            parts.append(text[position:])
        return parts

    def _matches(self, text: str, literal: Sequence[Span], parse_special: bool) -> list[_Match]:
        index = self._with_control if parse_special else self._without_control
        if index.starts is None:
            return []
        ends = [end for _, end in literal]

        def allowed(start: int, end: int, token_id: int) -> bool:
            flags = self._flags.get(token_id)
            if flags is not None and flags.single_word and not _stands_alone(text, start, end):
                return False
            if not literal or text[start:end] not in self._control:
                return True
            after = bisect_right(ends, start)
            return after == len(literal) or literal[after][0] >= end

        return _longest_first(text, index, allowed)


class _Index:
    """Texts of tokens, looked up by first character and length."""

    def __init__(self, ids: Mapping[str, int]) -> None:
        self.ids = ids
        lengths: dict[str, set[int]] = {}
        for text in ids:
            lengths.setdefault(text[0], set()).add(len(text))
        self.lengths = {first: sorted(found, reverse=True) for first, found in lengths.items()}
        self.starts = re.compile(f"[{re.escape(''.join(lengths))}]") if lengths else None

    def longest(
        self, text: str, start: int, limit: int, allowed: Callable[[int, int, int], bool]
    ) -> _Match | None:
        """The longest allowed token that begins at ``start`` and ends at ``limit`` or before."""
        for length in self.lengths[text[start]]:
            end = start + length
            if end <= limit:
                token_id = self.ids.get(text[start:end])
                if token_id is not None and allowed(start, end, token_id):
                    return start, end, token_id
        return None


def _longest_first(text: str, index: _Index, allowed: Callable[[int, int, int], bool]) -> list[_Match]:
    """Disjoint matches in text order. Each character starts at most one candidate at a time, so the work is
    n log n.
    """
    assert index.starts is not None
    queue: list[tuple[int, int, _Match]] = []

    def propose(start: int, limit: int) -> None:
        match = index.longest(text, start, limit, allowed)
        if match is not None:  # llama.cpp compares lengths in bytes
            size = len(text[start : match[1]].encode("utf-8", "surrogateescape"))
            heapq.heappush(queue, (-size, start, match))

    for found in index.starts.finditer(text):
        propose(found.start(), len(text))
    if not queue:
        return []
    taken = bytearray(len(text))
    chosen: list[_Match] = []
    while queue:
        _, start, match = heapq.heappop(queue)
        blocked = taken.find(1, start, match[1])
        if blocked < 0:
            taken[start : match[1]] = b"\1" * (match[1] - start)
            chosen.append(match)
        elif blocked > start:
            propose(start, blocked)
    return sorted(chosen)


def _stands_alone(text: str, start: int, end: int) -> bool:
    """Whether neither neighbour continues a word (``single_word`` of tokenizer.json)."""
    neighbours = text[start - 1 : start] + text[end : end + 1] if start else text[end : end + 1]
    return not any(character.isalnum() or character == "_" for character in neighbours)
