"""The cache's blocks: who holds which, which hold a prefix that others can share, which to reuse next.

Sequences come in and get block ids; no memory is touched here. Each block is in exactly one state:

* free: nothing worth keeping is in it;
* used: at least one sequence has it in its block table;
* cached: nobody uses it, but it holds known tokens and can be found. When no free block is left, the cached
  block that was let go longest ago is taken.

The key of a block is a SHA-256 over the key before it and its token ids in fixed width, the first over the
root seed and the salt of the request. So equal keys mean the same model, salt, tokens and position, and
nobody can make two prompts meet in one key. A block with a key is never written again: a full one gets it at
once, the last one of a sequence, which is seldom full, when the sequence lets it go.

A prompt that ends or departs inside a shared block can't have that block in its table: it would write its own
tokens behind the common ones, under the eyes of others. So it gets a fresh block and a copy of what is in the
shared one, and goes on writing there: copy-on-write, the copy made at once because the write is certain. The
copy is carried out by the step, before it writes anything. So its source needs no reference: if the source is
evicted in the same pass, what is to come into it is written, or copied, after it was read.
"""

import struct
from collections import Counter
from collections.abc import Iterable
from hashlib import sha256

from nanollama.engine.children import MIN_COMMON, Children
from nanollama.engine.sequence import Sequence


class BlockManager:
    """Hands out ``num_blocks`` blocks of ``block_tokens`` tokens each."""

    def __init__(self, num_blocks: int, block_tokens: int, root_seed: bytes) -> None:
        """All blocks are free. ``root_seed`` is the digest of all that the cache's content depends on besides
        tokens: model, adapter, data type."""
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens
        self.n_looked_up = 0
        """Tokens that sequences had when they were admitted."""
        self.n_found = 0
        """Those of them that were in the cache."""
        self.n_evicted = 0
        """Cached blocks that were given up for new content."""
        self._seed = sha256(root_seed).digest()
        self._references = [0] * num_blocks
        self._free = list(reversed(range(num_blocks)))  # a stack: small ids first, so memory grows with use
        self._cached: dict[int, None] = {}  # in the order in which they were let go
        self._key_of: list[bytes | None] = [None] * num_blocks
        self._block_of: dict[bytes, int] = {}
        self._children = Children()
        self._copies: list[tuple[int, int]] = []
        self._uncopied: set[int] = set()  # destinations of copies whose step is not known to have run

    @property
    def n_free(self) -> int:
        return len(self._free)

    @property
    def n_cached(self) -> int:
        return len(self._cached)

    @property
    def n_used(self) -> int:
        return self.num_blocks - len(self._free) - len(self._cached)

    def blocks_for(self, n_tokens: int) -> int:
        """The number of blocks that hold ``n_tokens`` tokens."""
        return -(-n_tokens // self.block_tokens)

    def name_blocks(self, sequence: Sequence) -> None:
        """Bring ``block_keys`` up to date: a key for each full block of the tokens known so far."""
        keys, size = sequence.block_keys, self.block_tokens
        for start in range(len(keys) * size, sequence.n_tokens - size + 1, size):
            parent = self._parent(sequence, len(keys))
            keys.append(self._key(parent, sequence.token_ids[start : start + size]))

    def first_missing(self, sequence: Sequence) -> bytes | None:
        """The key of the first block that could come from the cache but is not there; ``None``: all are."""
        n_found = len(self._find(sequence))
        return sequence.block_keys[n_found] if n_found < self._max_found(sequence) else None

    def admit(self, sequence: Sequence, reserve: int) -> bool:
        """Give a sequence blocks for all its tokens, as far as possible ones that hold them already.

        Either all or nothing: ``False``, and nothing changes, if fewer than ``reserve`` blocks would be left.
        The copies that it needs are then among ``take_copies``.
        """
        assert not sequence.block_table
        found = self._find(sequence)
        n_new = self.blocks_for(sequence.n_tokens) - len(found)
        n_revived = sum(block in self._cached for block in found)
        if len(self._free) + len(self._cached) - n_revived - n_new < reserve:
            return False
        for block in found:
            self._cached.pop(block, None)
            self._references[block] += 1
        sequence.block_table += found
        source, n_copied = self._find_part(sequence)
        sequence.block_table += (self._take() for _ in range(n_new))
        if source is not None and source != (destination := sequence.block_table[len(found)]):
            self._copies.append((source, destination))
            self._uncopied.add(destination)
        sequence.n_cached = len(found) * self.block_tokens + n_copied
        self.n_looked_up += sequence.n_tokens
        self.n_found += sequence.n_cached
        return True

    def take_copies(self) -> tuple[tuple[int, int], ...]:
        """The copies, source and destination, that those admitted since the last call count on.

        The next step makes them, in order, before it writes anything.
        """
        copies = tuple(self._copies)
        self._copies.clear()
        return copies

    def grow(self, sequence: Sequence) -> bool:
        """Give a running sequence the block its newest token needs, if any; ``False`` if none is left."""
        if sequence.n_tokens > len(sequence.block_table) * self.block_tokens:
            if not self._free and not self._cached:
                return False
            sequence.block_table.append(self._take())
        return True

    def advance(self, sequence: Sequence, n_new: int) -> None:
        """Note that ``n_new`` more tokens were computed, and let others find the blocks that became full.

        If another block holds the same tokens already, that one stays the one to be found.
        """
        size = self.block_tokens
        first_full = sequence.n_cached // size
        self._uncopied.discard(sequence.block_table[first_full])
        sequence.n_cached += n_new
        assert sequence.n_cached <= sequence.n_tokens
        for i in range(first_full, sequence.n_cached // size):
            key, block = sequence.block_keys[i], sequence.block_table[i]
            if key not in self._block_of:
                tokens = tuple(sequence.token_ids[i * size : (i + 1) * size])
                self._name(block, key, self._parent(sequence, i), tokens)

    def release(self, sequence: Sequence) -> None:
        """Take all blocks from a sequence. Those with a key stay findable until they are needed."""
        self._name_last(sequence)
        # Backwards: the end of a prefix is of use only together with its start, so it is given up first.
        for block in reversed(sequence.block_table):
            self._references[block] -= 1
            if self._references[block] == 0:
                if self._key_of[block] is None:
                    self._free.append(block)
                else:
                    self._cached[block] = None
        sequence.block_table.clear()
        sequence.n_cached = 0

    def clear(self) -> None:
        """Forget all that can be shared, as must be done when the blocks are written past this manager."""
        self._free += reversed(self._cached)
        self._cached.clear()
        self._block_of.clear()
        self._children.clear()
        self._key_of = [None] * self.num_blocks

    def check(self, sequences: Iterable[Sequence]) -> None:
        """Assert that the books are consistent, given all sequences that hold blocks. Slow: for tests."""
        sequences = list(sequences)
        held = Counter(block for sequence in sequences for block in sequence.block_table)
        assert all(held[block] == n for block, n in enumerate(self._references)), "references are off"
        assert len(held) == self.n_used, "a block is lost"
        states = sorted([*held, *self._free, *self._cached])
        assert states == list(range(self.num_blocks)), "a block is not in exactly one state"
        named = {key: block for block, key in enumerate(self._key_of) if key is not None}
        assert named == self._block_of, "keys and blocks do not agree"
        assert all(self._key_of[block] is None for block in self._free), "a free block can be found"
        assert all(self._key_of[block] is not None for block in self._cached), "a cached block is nameless"
        children = {self._key(*child): block for block, child in self._children.contents().items()}
        assert children == self._block_of, "children and blocks do not agree"
        self._check_copies()
        assert all(self._references[block] == 1 for block in self._uncopied), "a copy is awaited by nobody"
        for sequence in sequences:
            self._check_sequence(sequence)

    def _check_sequence(self, sequence: Sequence) -> None:
        table, keys, n_full = (
            sequence.block_table,
            sequence.block_keys,
            sequence.n_cached // self.block_tokens,
        )
        assert len(set(table)) == len(table), "a block is twice in a table"
        assert len(keys) == sequence.n_tokens // self.block_tokens, "the keys are out of date"
        assert sequence.n_cached <= len(table) * self.block_tokens, "tokens lie outside the table"
        for i, block in enumerate(table):
            if i < n_full:
                assert self._key_of[block] in (None, keys[i]), "a block is found under the wrong key"
            else:
                assert self._key_of[block] is None, "a block can be found before it is full"
                assert self._references[block] == 1, "a block that is still written is shared"

    def _check_copies(self) -> None:
        destinations = [destination for _, destination in self._copies]
        assert len(set(destinations)) == len(destinations), "two copies go into one block"
        for block in destinations:
            assert self._references[block] == 1, "a copy goes into a block that is not one sequence's own"
            assert self._key_of[block] is None, "a copy goes into a block that can be found"
        # A source that was evicted may be written by a later copy, never by an earlier one.
        for i, block in enumerate(destinations):
            assert block not in {source for source, _ in self._copies[i + 1 :]}, "a copy is copied"

    def _key(self, parent: bytes, tokens: Iterable[int]) -> bytes:
        tokens = tuple(tokens)
        return sha256(parent + struct.pack(f"<{len(tokens)}I", *tokens)).digest()

    def _parent(self, sequence: Sequence, index: int) -> bytes:
        """The key before a block of a sequence."""
        return sequence.block_keys[index - 1] if index else self._root(sequence.request.salt)

    def _root(self, salt: str) -> bytes:
        # Both parts hashed first, so that no seed and salt can be shifted into another pair; surrogatepass,
        # because a salt is any string.
        return sha256(self._seed + sha256(salt.encode("utf-8", "surrogatepass")).digest()).digest()

    def _max_found(self, sequence: Sequence) -> int:
        return sequence.max_reusable // self.block_tokens

    def _find(self, sequence: Sequence) -> list[int]:
        """The cached blocks of the longest known prefix."""
        found = []
        for key in sequence.block_keys[: self._max_found(sequence)]:
            block = self._block_of.get(key)
            if block is None:
                break
            found.append(block)
        return found

    def _name(self, block: int, key: bytes, parent: bytes, tokens: tuple[int, ...]) -> None:
        self._block_of[key] = block
        self._key_of[block] = key
        self._children.add(block, parent, tokens)

    def _name_last(self, sequence: Sequence) -> None:
        """Let others copy the tokens behind the last full block: nobody writes there any more."""
        index, n = divmod(sequence.n_cached, self.block_tokens)
        if n < MIN_COMMON:
            return
        block = sequence.block_table[index]
        if block in self._uncopied:  # the step failed: what counts as cached may never have come
            self._uncopied.remove(block)
            return
        parent = self._parent(sequence, index)
        tokens = tuple(sequence.token_ids[sequence.n_cached - n : sequence.n_cached])
        known = self._children.closest(parent, tokens)
        if known is None or known[1] < n:
            self._name(block, self._key(parent, tokens), parent, tokens)

    def _find_part(self, sequence: Sequence) -> tuple[int | None, int]:
        """A block whose beginning is what a sequence needs next, behind its table, and how many tokens of it.

        It counts as used now: whoever copies a block never lets it go, and would leave it to be evicted.
        """
        start = len(sequence.block_table) * self.block_tokens
        end = min(start + self.block_tokens, sequence.max_reusable)
        wanted = tuple(sequence.token_ids[start:end])
        found = self._children.closest(self._parent(sequence, len(sequence.block_table)), wanted)
        if found is None:
            return None, 0
        if found[0] in self._cached:
            del self._cached[found[0]]
            self._cached[found[0]] = None
        return found

    def _take(self) -> int:
        if self._free:
            block = self._free.pop()
        else:
            block = next(iter(self._cached))
            del self._cached[block]
            key = self._key_of[block]
            assert key is not None
            del self._block_of[key]
            self._children.remove(block)
            self._key_of[block] = None
            self.n_evicted += 1
        self._references[block] = 1
        return block
