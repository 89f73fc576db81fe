"""Random steps on the native backend, each row against the slowest decoder: the tape's index arithmetic.

Sequences of random lengths live in scattered blocks, are prefilled in random chunks, decoded in random
company, dropped and replaced. After every step each row whose logits were asked for has to be what the
reference says of its sequence alone.
"""

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from nanollama import reference
from nanollama.backends.native.backend import BLOCK_TOKENS, NativeBackend
from nanollama.backends.native.library import Library
from nanollama.backends.native.locate import find_library
from nanollama.backends.ops import ModelInput, SequenceInput
from nanollama.errors import BackendError
from toys import VOCAB, Toy, make_toy

CACHE_TOKENS = 2048
LONGEST = 330  # more than one span of attention


@dataclass
class Life:
    """A sequence: all its tokens are decided, ``n_cached`` of them have run."""

    ids: tuple[int, ...]
    expected: np.ndarray
    n_cached: int = 0
    table: list[int] = field(default_factory=list)


class World:
    """Some sequences, and the blocks that are free."""

    def __init__(self, toy: Toy, random: np.random.Generator) -> None:
        self.toy, self.random = toy, random
        self.params = {name: torch.from_numpy(array) for name, array in toy.arrays.items()}
        self.free = list(random.permutation(CACHE_TOKENS // BLOCK_TOKENS))
        self.lives: list[Life] = []

    def born(self) -> Life:
        ids = tuple(int(i) for i in self.random.integers(0, VOCAB, self.random.integers(1, LONGEST)))
        with torch.inference_mode():
            expected = reference.logits(self.toy.spec, self.params, ids).numpy()
        return Life(ids, expected)

    def step(self) -> tuple[ModelInput, list[np.ndarray]]:
        """A random step, with the rows that have to come out of it."""
        self.lives = [life for life in self.lives if not self._ends(life)]
        while len(self.lives) < 4:
            self.lives.append(self.born())
        token_ids: list[int] = []
        sequences: list[SequenceInput] = []
        logit_rows: list[int] = []
        expected: list[np.ndarray] = []
        for life in self.random.permutation(np.array(self.lives, dtype=object)):
            left = len(life.ids) - life.n_cached
            n_new = min(left, int(self.random.choice([1, 1, 2, 7, 16, 17, 90])))
            needed = -(-(life.n_cached + n_new) // BLOCK_TOKENS) - len(life.table)
            if self.random.random() < 0.2 or needed > len(self.free):
                continue
            life.table += [int(self.free.pop()) for _ in range(needed)]
            wanted = np.flatnonzero(self.random.random(n_new) < 0.4)
            logit_rows += [len(token_ids) + int(i) for i in wanted]
            expected += [life.expected[life.n_cached + i] for i in wanted]
            token_ids += life.ids[life.n_cached : life.n_cached + n_new]
            sequences.append(SequenceInput(n_new, life.n_cached, tuple(life.table)))
            life.n_cached += n_new
        return ModelInput(tuple(token_ids), tuple(sequences), tuple(logit_rows)), expected

    def _ends(self, life: Life) -> bool:
        if life.n_cached < len(life.ids) and self.random.random() > 0.02:
            return False
        self.free += life.table
        self.random.shuffle(self.free)
        return True


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_random_steps_give_every_row_its_own_logits(kind: str) -> None:
    try:
        library = Library(find_library())
    except BackendError as error:
        pytest.skip(str(error))
    toy = make_toy(kind)
    world = World(toy, np.random.default_rng(5))
    backend = NativeBackend(toy.spec, toy.tensors, library=library, threads=2, cache_tokens=CACHE_TOKENS)
    rows = 0
    for _ in range(200):
        batch, expected = world.step()
        if not batch.token_ids:
            continue
        logits = backend.step(batch)
        assert len(logits) == len(expected)
        for ours, theirs in zip(logits, expected, strict=True):
            assert np.linalg.norm(ours - theirs) < 5e-3 * np.linalg.norm(theirs)
        rows += len(expected)
    backend.close()
    assert rows > 1000
