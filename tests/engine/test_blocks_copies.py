"""Blocks that are shared in part: what is copied from where, what is not, and what eviction does to it."""

import pytest

from nanollama.engine.blocks import BlockManager
from nanollama.engine.sequence import Sequence
from sequences import named

SIZE = 8


def manager(num_blocks: int = 8, root_seed: bytes = b"model") -> BlockManager:
    return BlockManager(num_blocks, SIZE, root_seed)


def admitted(blocks: BlockManager, tokens, salt: str = "", **request) -> Sequence:
    new = named(blocks, tokens, salt, **request)
    assert blocks.admit(new, reserve=0)
    return new


def run(blocks: BlockManager, tokens, salt: str = "") -> Sequence:
    """Admit a sequence and compute all its tokens."""
    running = admitted(blocks, tokens, salt)
    blocks.advance(running, running.n_uncached)
    blocks.take_copies()
    return running


@pytest.mark.parametrize(
    ("tokens", "n_found", "source"),
    [
        (range(14), 13, 1),  # ends inside a block; one token is computed
        ([*range(13), 90, 91, 92, 93, 94, 95], 13, 1),  # departs inside a block
        (range(16), 15, 1),  # ends where the block does
        (range(24), 23, 2),
        (range(25), 24, None),
        (range(6), 5, 0),  # inside the first block
        ([*range(12), 90], 12, 1),
        ([*range(11), 90], 8, None),  # three tokens are not worth a copy
        (range(12), 8, None),
        ([0, 1, 2, 90, 4, 5, 6, 7, 8], 0, None),
        (range(8, 16), 0, None),  # equal tokens in another place
        ([*range(6), 90, 7, *range(8, 24)], 6, 0),  # equal blocks behind a different one
    ],
)
def test_the_common_beginning_of_a_block_is_copied(tokens, n_found, source):
    blocks = manager()
    blocks.release(run(blocks, range(24)))
    new = admitted(blocks, tokens)
    copies = [] if source is None else [(source, new.block_table[n_found // SIZE])]
    blocks.check([new])
    assert (new.n_cached, blocks.n_found) == (n_found, n_found)
    assert blocks.take_copies() == tuple(copies)
    assert blocks.take_copies() == ()
    assert all(destination >= 3 for _, destination in copies), "a copy goes into a fresh block"


def test_of_several_children_the_one_that_holds_most_is_copied():
    blocks = manager(16)
    for end in (
        [8, 9, 10, 11, 12, 70, 71, 72],
        [8, 9, 10, 11, 12, 13, 80, 81],
        [8, 9, 10, 11, 90, 91, 92, 93],
    ):
        blocks.release(run(blocks, [*range(8), *end]))
    new = admitted(blocks, range(16))
    assert (new.n_cached, blocks.take_copies()) == (14, ((2, new.block_table[1]),))


def test_blocks_in_use_are_copied_by_as_many_as_like():
    blocks = manager(16)
    first = run(blocks, range(20))
    others = [admitted(blocks, range(14)) for _ in range(3)]
    copies = blocks.take_copies()
    assert [source for source, _ in copies] == [first.block_table[1]] * 3
    assert [destination for _, destination in copies] == [other.block_table[1] for other in others]
    assert len({other.block_table[1] for other in others}) == 3
    blocks.check([first, *others])


def test_a_block_is_not_copied_before_it_is_full():
    blocks = manager()
    first = admitted(blocks, range(16))
    blocks.advance(first, 15)
    assert admitted(blocks, range(14)).n_cached == 8
    blocks.advance(first, 1)
    assert admitted(blocks, range(14)).n_cached == 13


def test_a_block_that_began_as_a_copy_is_found_when_it_is_full():
    blocks = manager(16)
    run(blocks, range(16))
    second = run(blocks, [*range(13), 90, 91, 92, 93])
    assert blocks.n_found == 13
    third = admitted(blocks, [*range(13), 90, 91, 92, 94])
    assert third.block_table[:2] == second.block_table[:2]


def test_generated_tokens_are_copied_like_a_prompt():
    blocks = manager()
    first = run(blocks, range(13))
    for token in range(13, 16):
        first.token_ids.append(token)
        blocks.name_blocks(first)
        blocks.advance(first, 1)
    blocks.release(first)
    assert admitted(blocks, range(13)).n_cached == 12


@pytest.mark.parametrize(
    ("tokens", "n_found"),
    [(range(13), 12), (range(20), 13), ([*range(12), 90], 12), ([*range(11), 90], 8), (range(12), 8)],
)
def test_the_last_block_of_a_sequence_is_copied_once_nobody_writes_it(tokens, n_found):
    blocks = manager()
    first = run(blocks, range(13))
    early = admitted(blocks, tokens)
    assert early.n_cached == min(n_found, 8)
    blocks.release(early)
    blocks.release(first)
    assert (blocks.n_free, blocks.n_cached) == (6, 2)
    assert admitted(blocks, tokens).n_cached == n_found


def test_three_tokens_in_a_last_block_are_not_kept():
    blocks = manager()
    blocks.release(run(blocks, range(11)))
    assert (blocks.n_free, blocks.n_cached) == (7, 1)


def test_a_last_block_is_kept_only_if_it_says_more_than_others():
    blocks = manager(16)
    for tokens, n_cached in (
        (range(13), 2),
        (range(13), 2),
        (range(12), 2),
        (range(14), 3),  # says more; the shorter one stays until it is evicted
        ([*range(12), 90], 4),
        (range(16), 5),
        (range(15), 5),
    ):
        blocks.release(run(blocks, tokens))
        blocks.check([])
        assert blocks.n_cached == n_cached


def test_a_last_block_without_full_ones_before_it_is_copied():
    blocks = manager()
    blocks.release(run(blocks, range(6)))
    assert admitted(blocks, range(6)).n_cached == 5
    assert admitted(blocks, range(6), "other salt").n_cached == 0


def test_who_was_preempted_copies_its_own_last_block():
    blocks = manager()
    first = run(blocks, range(14))
    blocks.release(first)
    assert blocks.admit(first, reserve=0)
    assert first.n_cached == 13


@pytest.mark.parametrize("salt", ["a", "A", "\0"])
def test_requests_with_another_salt_copy_nothing(salt):
    blocks = manager()
    run(blocks, range(16))
    assert admitted(blocks, range(6), salt).n_cached == 0
    assert admitted(blocks, range(14), salt).n_cached == 0
    assert blocks.take_copies() == ()


def test_prompts_whose_logits_are_wanted_copy_only_what_they_computed_before():
    blocks = manager()
    run(blocks, range(16))
    assert admitted(blocks, range(14), prompt_logprobs=0).n_cached == 0
    again = named(blocks, range(14), prompt_logprobs=0)
    again.n_computed = 13
    assert blocks.admit(again, reserve=0)
    assert again.n_cached == 13


def test_who_is_not_admitted_copies_nothing():
    blocks = manager(2)
    run(blocks, range(16))
    assert not blocks.admit(named(blocks, range(14)), reserve=0)
    assert (blocks.take_copies(), blocks.n_found) == ((), 0)


def test_evicted_and_forgotten_blocks_are_not_copied():
    blocks = manager(3)
    blocks.release(run(blocks, range(16)))
    blocks.release(run(blocks, range(50, 60)))  # takes the free block and the end of the other prefix
    assert admitted(blocks, range(14)).n_cached == 8
    blocks = manager()
    blocks.release(run(blocks, range(16)))
    blocks.clear()
    assert admitted(blocks, range(14)).n_cached == 0
    assert blocks.take_copies() == ()


def test_a_block_that_is_copied_counts_as_used_and_is_evicted_late():
    blocks = manager(4)
    blocks.release(run(blocks, range(16)))
    blocks.release(run(blocks, range(50, 58)))
    blocks.release(run(blocks, range(14)))
    run(blocks, range(90, 106))  # the free block, and one that was cached
    assert blocks.n_evicted == 1
    assert blocks.first_missing(named(blocks, range(50, 59))) is not None
    assert blocks.first_missing(named(blocks, range(17))) is None


def test_a_source_that_is_evicted_in_the_same_pass_is_read_before_it_is_written():
    """The block is source of the first copy and destination of the second: only in that order."""
    blocks = manager(5)
    one, other = run(blocks, range(16)), run(blocks, range(50, 66))
    source, behind = one.block_table[1], other.block_table[1]
    blocks.release(one)
    blocks.release(other)
    first = admitted(blocks, range(14))
    second = admitted(blocks, range(50, 64))
    blocks.check([first, second])
    assert second.block_table[1] == source
    assert blocks.take_copies() == ((source, first.block_table[1]), (behind, source))


def test_a_source_that_becomes_its_own_copy_stays_where_it_is():
    blocks = manager(2)
    blocks.release(run(blocks, range(16)))
    new = admitted(blocks, range(14))
    assert (new.block_table, new.n_cached, blocks.take_copies()) == ([0, 1], 13, ())
    blocks.check([new])
    assert blocks.first_missing(named(blocks, range(17))) == named(blocks, range(16)).block_keys[1]


@pytest.mark.parametrize(("is_made", "n_found"), [(True, 13), (False, 8)])
def test_a_copy_is_copied_on_only_if_it_was_made(is_made, n_found):
    """Let go before its step was done, as when that failed: nobody knows what is in the destination."""
    blocks = manager(3)
    blocks.release(run(blocks, range(16)))
    new = admitted(blocks, range(14))
    other = admitted(blocks, range(50, 54))  # evicts the source
    assert blocks.take_copies() == ((1, 2),)
    if is_made:
        blocks.advance(new, 1)
    blocks.release(new)
    blocks.release(other)
    blocks.check([])
    assert blocks.n_free == (1 if is_made else 2)
    assert admitted(blocks, range(14)).n_cached == n_found


def lose_a_child(blocks, held):
    blocks._children.remove(held.block_table[0])


def keep_an_evicted_child(blocks, held):
    blocks._children.add(7, b"key", tuple(range(SIZE)))


def mistake_the_tokens(blocks, held):
    blocks._children.remove(held.block_table[0])
    blocks._children.add(held.block_table[0], blocks._root(""), tuple(range(1, SIZE + 1)))


def mistake_the_parent(blocks, held):
    blocks._children.remove(held.block_table[0])
    blocks._children.add(held.block_table[0], b"key", tuple(range(SIZE)))


def copy_into_a_findable_block(blocks, held):
    blocks._copies.append((held.block_table[1], held.block_table[0]))


def copy_into_a_free_block(blocks, held):
    blocks._copies.append((held.block_table[0], 7))


def copy_twice_into_one_block(blocks, held):
    blocks._copies += [(held.block_table[0], held.block_table[2]), (held.block_table[1], held.block_table[2])]


def copy_a_copy(blocks, held):
    blocks._copies += [(held.block_table[0], held.block_table[2]), (held.block_table[2], held.block_table[3])]


def await_a_copy_that_nobody_counts_on(blocks, held):
    blocks._uncopied.add(7)


@pytest.mark.parametrize(
    "damage",
    [
        lose_a_child,
        keep_an_evicted_child,
        mistake_the_tokens,
        mistake_the_parent,
        copy_into_a_findable_block,
        copy_into_a_free_block,
        copy_twice_into_one_block,
        copy_a_copy,
        await_a_copy_that_nobody_counts_on,
    ],
)
def test_the_integrity_check_sees_damage_to_children_and_copies(damage):
    blocks = manager()
    held = run(blocks, range(20))
    held.block_table.append(blocks._take())
    blocks.check([held])
    damage(blocks, held)
    with pytest.raises(AssertionError):
        blocks.check([held])
