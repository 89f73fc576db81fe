"""The findable blocks by what they follow: which is the closest to what is wanted, and what is forgotten."""

import random

import pytest

from nanollama.engine.children import MIN_COMMON, Children

HELD = {3: tuple(range(8)), 5: (0, 1, 2, 3, 4, 5, 90, 91), 7: (0, 1, 2, 3, 80, 81, 82, 83)}


def children() -> Children:
    made = Children()
    for block, tokens in HELD.items():
        made.add(block, b"parent", tokens)
    return made


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (range(8), (3, 8)),
        (range(7), (3, 7)),
        (range(6), (3, 6)),  # two hold it: the first
        ([0, 1, 2, 3, 4, 5, 90], (5, 7)),
        ([0, 1, 2, 3, 4, 70, 71, 72], (3, 5)),
        ([0, 1, 2, 3, 80, 81, 70], (7, 6)),
        (range(MIN_COMMON), (3, MIN_COMMON)),
        (range(MIN_COMMON - 1), None),
        ([0, 1, 2, 70, 4, 5, 6, 7], None),
        ([], None),
    ],
)
def test_the_block_with_the_longest_common_beginning_is_found(wanted, expected):
    assert children().closest(b"parent", tuple(wanted)) == expected


def test_blocks_behind_another_parent_are_not_found():
    assert children().closest(b"other", HELD[3]) is None


def test_a_removed_block_gives_way_to_the_next_best():
    kept = children()
    kept.remove(3)
    assert kept.closest(b"parent", HELD[3]) == (5, 6)
    kept.clear()
    assert kept.closest(b"parent", HELD[3]) is None
    assert kept.contents() == {}


def test_a_search_finds_what_comparing_all_blocks_finds():
    rng = random.Random(4)
    kept, held = Children(), {}

    def common(block: int, parent: bytes, wanted: tuple[int, ...]) -> int:
        if held[block][0] != parent:
            return 0
        return next((i for i, (a, b) in enumerate(zip(held[block][1], wanted, strict=False)) if a != b), 8)

    for block in [*range(300), *rng.choices(range(300), k=2000)]:
        if block in held:
            kept.remove(block)
            del held[block]
        else:
            held[block] = rng.choice([b"a", b"b"]), tuple(rng.choices(range(2), k=8))
            kept.add(block, *held[block])
        parent, wanted = rng.choice([b"a", b"b"]), tuple(rng.choices(range(2), k=8))
        best = max((common(other, parent, wanted) for other in held), default=0)
        found = kept.closest(parent, wanted)
        if found is None:
            assert best < MIN_COMMON
        else:
            assert found[1] == best == common(found[0], parent, wanted)
    assert kept.contents() == held
