"""Blocks: counting, sharing by prefix, what is evicted first, and keys that nobody can make meet."""

import hashlib
import random
import struct

import pytest

from nanollama.engine.blocks import BlockManager
from nanollama.engine.sequence import Sequence
from sequences import named

SIZE = 4


def manager(num_blocks: int = 8, root_seed: bytes = b"model") -> BlockManager:
    return BlockManager(num_blocks, SIZE, root_seed)


def run(blocks: BlockManager, tokens, salt: str = "") -> Sequence:
    """Admit a sequence and compute all its tokens."""
    running = named(blocks, tokens, salt)
    assert blocks.admit(running, reserve=0)
    blocks.advance(running, running.n_uncached)
    return running


def counts(blocks: BlockManager) -> tuple[int, int, int]:
    return blocks.n_free, blocks.n_cached, blocks.n_used


def test_blocks_go_from_free_to_used_to_cached():
    blocks = manager()
    assert counts(blocks) == (8, 0, 0)
    first = run(blocks, range(10))
    assert counts(blocks) == (5, 0, 3)
    blocks.release(first)
    assert counts(blocks) == (6, 2, 0)  # the third block is not full: nobody can share it
    assert (first.block_table, first.n_cached) == ([], 0)
    blocks.check([])


def test_small_ids_are_used_first_so_that_memory_grows_with_use():
    assert run(manager(), range(10)).block_table == [0, 1, 2]


@pytest.mark.parametrize(
    ("tokens", "n_found"),
    [
        ([*range(12), 90], 12),
        (range(12), 8),  # at least one token is computed, and blocks are whole
        (range(11), 8),
        (range(9), 8),
        (range(8), 4),
        (range(4), 0),
        ([0, 1, 2, 3, 4, 90, 6, 7, 8], 4),  # a different token in the second block
        ([90, 1, 2, 3, 4, 5, 6, 7, 8], 0),  # equal blocks behind a different one
        ([4, 5, 6, 7, 8], 0),  # an equal block in another place
    ],
)
def test_the_longest_cached_prefix_of_whole_blocks_is_found(tokens, n_found):
    blocks = manager()
    first = run(blocks, range(12))
    table = list(first.block_table)
    blocks.release(first)
    second = named(blocks, tokens)
    assert blocks.admit(second, reserve=0)
    assert second.n_cached == n_found
    assert second.block_table[: n_found // SIZE] == table[: n_found // SIZE]
    assert (blocks.n_looked_up, blocks.n_found) == (12 + len(tokens), n_found)
    blocks.check([second])


def test_running_sequences_share_what_is_computed():
    blocks = manager()
    first = run(blocks, range(10))
    second = named(blocks, range(10))
    assert blocks.admit(second, reserve=0)
    assert second.block_table[:2] == first.block_table[:2]
    assert second.block_table[2] != first.block_table[2]
    assert counts(blocks) == (4, 0, 4)
    blocks.check([first, second])
    blocks.release(first)
    assert counts(blocks) == (5, 0, 3)
    blocks.check([second])


def test_a_block_is_not_found_before_its_last_token_is_computed():
    blocks = manager()
    first = named(blocks, range(8))
    assert blocks.admit(first, reserve=0)
    blocks.advance(first, 7)
    second = named(blocks, range(9))
    assert blocks.first_missing(second) == second.block_keys[1]
    blocks.advance(first, 1)
    assert blocks.first_missing(second) is None


def test_a_second_computation_of_a_block_does_not_replace_the_first():
    blocks = manager()
    twins = [named(blocks, range(9)) for _ in range(2)]
    for twin in twins:
        assert blocks.admit(twin, reserve=0)
    for twin in twins:
        blocks.advance(twin, 9)
    blocks.check(twins)
    third = run(blocks, range(9))
    assert third.block_table[:2] == twins[0].block_table[:2]
    blocks.release(twins[1])
    assert counts(blocks) == (4, 0, 4)  # the second computation is of no use to anybody
    blocks.check([twins[0], third])


def test_generated_tokens_are_found_like_a_prompt():
    blocks = manager()
    first = run(blocks, range(6))
    for token in (6, 7, 8):
        first.token_ids.append(token)
        blocks.name_blocks(first)
        assert blocks.grow(first)
        blocks.advance(first, 1)
    blocks.release(first)
    run(blocks, [*range(8), 60])
    assert blocks.n_found == 8


def test_admission_is_all_or_nothing():
    blocks = manager(4)
    first = run(blocks, range(8))
    second = named(blocks, range(50, 60))
    assert not blocks.admit(second, reserve=0)
    assert (second.block_table, second.n_cached, counts(blocks)) == ([], 0, (2, 0, 2))
    blocks.check([first])


@pytest.mark.parametrize(("reserve", "fits"), [(0, True), (1, True), (2, False)])
def test_admission_leaves_the_reserve(reserve, fits):
    blocks = manager(4)
    run(blocks, range(4))
    assert blocks.admit(named(blocks, range(50, 58)), reserve) is fits


def test_cached_blocks_that_are_found_do_not_count_as_room_for_new_ones():
    blocks = manager(3)
    blocks.release(run(blocks, range(8)))
    assert counts(blocks) == (1, 2, 0)
    assert not blocks.admit(named(blocks, range(13)), reserve=0)  # 2 found and 2 more
    assert not blocks.admit(named(blocks, range(9)), reserve=1)
    assert blocks.admit(named(blocks, range(9)), reserve=0)


def test_growth_takes_a_block_only_at_a_boundary_and_fails_without_one():
    blocks = manager(2)
    first = run(blocks, range(7))
    for token, table in ((7, [0, 1]), (8, [0, 1])):
        first.token_ids.append(token)
        assert blocks.grow(first) is (token < 8)
        assert first.block_table == table


def test_the_least_recently_used_prefix_is_evicted_first_and_from_its_end():
    blocks = manager(6)
    old, new = run(blocks, range(12)), run(blocks, range(50, 62))
    blocks.release(old)
    blocks.release(new)
    blocks.release(run(blocks, range(5)))  # uses the first block of the old prefix again
    assert counts(blocks) == (1, 5, 0)
    run(blocks, range(90, 98))
    assert blocks.n_evicted == 2  # the end of the old prefix went for that 5th token, the middle now
    assert blocks.first_missing(named(blocks, range(13))) == named(blocks, range(8)).block_keys[1]
    assert blocks.first_missing(named(blocks, range(50, 63))) is None


def test_the_end_of_a_prefix_is_evicted_before_its_start():
    blocks = manager(3)
    blocks.release(run(blocks, range(12)))
    run(blocks, range(50, 53))
    assert blocks.first_missing(named(blocks, range(13))) == named(blocks, range(12)).block_keys[2]


def test_blocks_in_use_are_never_evicted():
    blocks = manager(3)
    first = run(blocks, range(8))
    run(blocks, range(50, 54))
    assert not blocks.admit(named(blocks, range(90, 92)), reserve=0)
    assert blocks.first_missing(named(blocks, range(9))) is None
    assert first.block_table == [0, 1]


def test_clear_forgets_what_is_cached_and_leaves_what_is_used():
    blocks = manager()
    kept, gone = run(blocks, range(8)), run(blocks, range(50, 58))
    blocks.release(gone)
    blocks.clear()
    assert counts(blocks) == (6, 0, 2)
    assert blocks.first_missing(named(blocks, range(9))) is not None
    blocks.check([kept])
    blocks.release(kept)
    assert counts(blocks) == (8, 0, 0)


def test_prompt_logprobs_compute_the_whole_prompt():
    blocks = manager()
    blocks.release(run(blocks, range(10)))
    scored = named(blocks, range(10), prompt_logprobs=0)
    assert blocks.first_missing(scored) is None
    assert blocks.admit(scored, reserve=0)
    assert scored.n_cached == 0


def test_requests_with_different_salts_never_share():
    blocks = manager(64)
    salts = ["", "a", "b", "ab", "a ", "A", "\0", "\udcff", "é", "e\u0301"]
    for salt in salts:
        run(blocks, range(9), salt)
    assert blocks.n_found == 0
    for salt in salts:
        run(blocks, range(9), salt)
    assert blocks.n_found == 8 * len(salts)


def first_key(tokens, salt: str = "", root_seed: bytes = b"") -> bytes:
    return named(manager(root_seed=root_seed), tokens, salt).block_keys[-1]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (first_key([1, 23, 4, 5]), first_key([12, 3, 4, 5])),
        (first_key([1, 2, 3, 4]), first_key([4, 3, 2, 1])),
        (first_key([0, 0, 0, 256]), first_key([0, 0, 0, 1])),
        (first_key([0, 1, 0, 0]), first_key([0, 0, 1, 0])),
        (first_key([1, 2, 3, 4]), first_key([1, 2, 3, 4, 1, 2, 3, 4])),
        (first_key([1, 2, 3, 4], "b", b"a"), first_key([1, 2, 3, 4], "", b"ab")),
        (first_key([1, 2, 3, 4], "ab", b""), first_key([1, 2, 3, 4], "", b"ab")),
        (first_key([1, 2, 3, 4], "", b"model"), first_key([1, 2, 3, 4], "", b"model with adapter")),
    ],
)
def test_nothing_can_be_shifted_from_one_part_of_a_key_into_another(one, other):
    assert one != other


def test_keys_do_not_depend_on_the_process():
    """Python's hash of a string differs from process to process, and can be made to collide."""
    root = hashlib.sha256(hashlib.sha256(b"model").digest() + hashlib.sha256(b"salt").digest()).digest()
    first = hashlib.sha256(root + struct.pack("<4I", 1, 2, 3, 2**32 - 1)).digest()
    second = hashlib.sha256(first + struct.pack("<4I", 5, 6, 7, 8)).digest()
    assert named(manager(), [1, 2, 3, 2**32 - 1, 5, 6, 7, 8, 9], "salt").block_keys == [first, second]


def test_keys_are_the_same_however_the_tokens_came():
    rng = random.Random(0)
    blocks = manager()
    for _ in range(200):
        tokens = [rng.randrange(3) for _ in range(rng.randrange(1, 30))]
        whole = named(blocks, tokens)
        grown = named(blocks, tokens[:1])
        for token in tokens[1:]:
            grown.token_ids.append(token)
            blocks.name_blocks(grown)
        assert grown.block_keys == whole.block_keys
        assert len(whole.block_keys) == len(tokens) // SIZE


def test_different_prefixes_have_different_keys():
    """Every block of many short-alphabet prompts under three salts: as many keys as prefixes."""
    rng = random.Random(1)
    blocks = manager()
    keys: dict[bytes, tuple] = {}
    for _ in range(3000):
        salt = rng.choice(["", "a", "b"])
        tokens = [rng.randrange(2) for _ in range(12)]
        for i, key in enumerate(named(blocks, tokens, salt).block_keys, 1):
            prefix = (salt, *tokens[: i * SIZE])
            assert keys.setdefault(key, prefix) == prefix
    assert len(set(keys.values())) == len(keys)


def break_references(blocks, held):
    blocks._references[held.block_table[0]] += 1


def lose_a_block(blocks, held):
    blocks._free.pop()


def free_twice(blocks, held):
    blocks._free.append(held.block_table[0])


def share_what_is_written(blocks, held):
    held.n_cached -= 6


def name_wrongly(blocks, held):
    held.block_keys.reverse()


def forget_a_key(blocks, held):
    blocks._block_of.popitem()


def put_twice_in_a_table(blocks, held):
    held.block_table.append(held.block_table[0])


@pytest.mark.parametrize(
    "damage",
    [
        break_references,
        lose_a_block,
        free_twice,
        share_what_is_written,
        name_wrongly,
        forget_a_key,
        put_twice_in_a_table,
    ],
)
def test_the_integrity_check_sees_damage(damage):
    blocks = manager()
    held = run(blocks, range(10))
    blocks.check([held])
    damage(blocks, held)
    with pytest.raises(AssertionError):
        blocks.check([held])
