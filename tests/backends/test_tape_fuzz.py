"""Random steps on the native backend, each row against the slowest decoder: the tape's index arithmetic.

Sequences of random lengths live in scattered blocks, are prefilled in random chunks, decoded in random
company, dropped and replaced. After every step each row whose logits were asked for has to be what the
reference says of its sequence alone. Of two experts that score nearly the same, rounding decides which one is
taken: models with experts are compared with the native backend's own pass over the sequence, to the bit.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from nanollama import reference
from nanollama.backends.native.backend import NativeBackend
from nanollama.backends.native.kv_cache import BLOCK_TOKENS
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

    def __init__(self, logits_of: "LogitsOf", random: np.random.Generator) -> None:
        self.logits_of, self.random = logits_of, random
        self.free = list(random.permutation(CACHE_TOKENS // BLOCK_TOKENS))
        self.lives: list[Life] = []

    def born(self) -> Life:
        ids = tuple(int(i) for i in self.random.integers(0, VOCAB, self.random.integers(1, LONGEST)))
        return Life(ids, self.logits_of(ids))

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


LogitsOf = Callable[[tuple[int, ...]], np.ndarray]


def reference_logits(toy: Toy) -> LogitsOf:
    params = {name: torch.from_numpy(array) for name, array in toy.arrays.items()}

    def logits_of(ids: tuple[int, ...]) -> np.ndarray:
        with torch.inference_mode():
            return reference.logits(toy.spec, params, ids).numpy()

    return logits_of


def own_logits(backend: NativeBackend) -> LogitsOf:
    def logits_of(ids: tuple[int, ...]) -> np.ndarray:
        table = tuple(range(-(-len(ids) // BLOCK_TOKENS)))
        return backend.step(
            ModelInput(ids, (SequenceInput(len(ids), 0, table),), tuple(range(len(ids))))
        ).copy()

    return logits_of


CLOSE = {"F32": 1e-4, "F16": 5e-3}  # the cache is float32 only where all matrices are
KINDS = (
    ("llama", "F32"),
    ("llama", "F16"),
    ("gemma3", "F32"),
    ("gemma3", "F16"),
    ("rows normed, of odd sizes", "F32"),
    ("gpt_oss", "F32"),
    ("experts of odd sizes", "F16"),
)


@pytest.mark.parametrize(("kind", "matrices"), KINDS)
def test_random_steps_give_every_row_its_own_logits(kind: str, matrices: str) -> None:
    try:
        library = Library(find_library())
    except BackendError as error:
        pytest.skip(str(error))
    toy = make_toy(kind, matrices=matrices)
    backend, alone = (
        NativeBackend(toy.spec, toy.tensors, library=library, threads=2, cache_tokens=CACHE_TOKENS)
        for _ in range(2)
    )
    has_experts = toy.spec.mlp.experts is not None
    world = World(own_logits(alone) if has_experts else reference_logits(toy), np.random.default_rng(5))
    allowed = 0.0 if has_experts else CLOSE[matrices]
    rows = 0
    for _ in range(200):
        batch, expected = world.step()
        if not batch.token_ids:
            continue
        logits = backend.step(batch)
        assert len(logits) == len(expected)
        for ours, theirs in zip(logits, expected, strict=True):
            assert np.linalg.norm(ours - theirs) <= allowed * np.linalg.norm(theirs)
        rows += len(expected)
    backend.close()
    alone.close()
    assert rows > 1000
