"""The integers of a step: every token has its own slot, and padding touches nothing but the scratch block."""

import numpy as np
import pytest
import torch

from nanollama.backends.ops import ModelInput, SequenceInput
from nanollama.backends.torch_batch import GroupShape, Layout, StepShape, grouped
from nanollama.backends.torch_cache import TorchCache
from nanollama.model.spec import AttentionSpec

ATTENTION = AttentionSpec(num_heads=4, num_kv_heads=2, head_dim=8, scale=1.0)
LAYOUT = Layout((None, 7), ATTENTION, block_tokens=32, num_blocks=20)


def parts(batch: ModelInput, shape: StepShape) -> list[np.ndarray]:
    data = LAYOUT.integers(batch, grouped(batch), shape)
    assert len(data) == sum(shape.lengths())
    return np.split(data, np.cumsum(shape.lengths())[:-1])


def test_decoding_sequences_come_first_and_logit_rows_follow_them() -> None:
    batch = ModelInput(
        (10, 11, 12, 20, 30, 31),
        (SequenceInput(3, 0, (4,)), SequenceInput(1, 40, (2, 9)), SequenceInput(2, 33, (7, 1))),
        (2, 3, 5),
    )
    shape = LAYOUT.shape_of(grouped(batch), 3)
    assert shape.groups == (
        GroupShape(1, 1, False, (2, 1)),
        GroupShape(1, 3, True, (0, 0)),
        GroupShape(1, 2, False, (2, 2)),
    )
    tokens, positions, slots, rows, *tables = parts(batch, shape)
    assert tokens.tolist() == [20, 10, 11, 12, 30, 31]
    assert positions.tolist() == [40, 0, 1, 2, 33, 34]
    assert slots.tolist() == [9 * 32 + 8, 4 * 32, 4 * 32 + 1, 4 * 32 + 2, 32 + 1, 32 + 2]
    assert rows.tolist() == [3, 0, 5]
    # For each group and window: blocks, then the position of the first one's first token.
    assert [t.tolist() for t in tables] == [
        [2, 9],
        [0],
        [9],
        [32],
        [],
        [0],
        [],
        [0],
        [7, 1],
        [0],
        [7, 1],
        [0],
    ]


@pytest.mark.parametrize(
    ("sequences", "expected"),
    [
        ([SequenceInput(1, 300, tuple(range(10)))] * 3, GroupShape(4, 1, False, (16, 2))),
        ([SequenceInput(1, 5, (3,))], GroupShape(1, 1, False, (8, 2))),
        ([SequenceInput(20, 0, (3,))], GroupShape(1, 32, True, (0, 3))),
        ([SequenceInput(5, 0, (3,))], GroupShape(1, 16, True, (0, 2))),
        ([SequenceInput(20, 600, tuple(range(20)))], GroupShape(1, 32, False, (20, 3))),
    ],
)
def test_shapes_are_rounded_up_and_never_beyond_the_cache(
    sequences: list[SequenceInput], expected: GroupShape
) -> None:
    batch = ModelInput(tuple(range(sum(s.n_new for s in sequences))), tuple(sequences), ())
    shape = LAYOUT.rounded(LAYOUT.shape_of(grouped(batch), 0))
    assert shape.groups == (expected,)


def test_padding_writes_to_the_scratch_block_alone() -> None:
    batch = ModelInput(
        (1, 2, 3), tuple(SequenceInput(1, n, (5, i)) for i, n in enumerate((33, 40, 63))), (0, 1, 2)
    )
    shape = LAYOUT.rounded(LAYOUT.shape_of(grouped(batch), 3))
    _, _, slots, _, table, bases, *_ = parts(batch, shape)
    assert slots.tolist() == [1, 32 + 8, 2 * 32 + 31, 20 * 32]
    table = table.reshape(4, 8)
    assert table[:3, :2].tolist() == [[5, 0], [5, 1], [5, 2]]
    assert (table[:3, 2:] == 20).all()
    assert (table[3] == 20).all()
    assert not bases.any()


@pytest.mark.parametrize("seed", range(20))
def test_any_step_gives_every_token_its_slot(seed: int) -> None:
    random = np.random.default_rng(seed)
    free = random.permutation(20).tolist()
    sequences = []
    while free and len(sequences) < 6:
        blocks = tuple(free.pop() for _ in range(min(len(free), random.integers(1, 4))))
        end = int(random.integers(1, 32 * len(blocks) + 1))
        n_new = 1 if random.random() < 0.5 else int(random.integers(1, end + 1))
        sequences.append(SequenceInput(n_new, end - n_new, blocks[: -(-end // 32)]))
    ids = tuple(range(1000, 1000 + sum(s.n_new for s in sequences)))
    batch = ModelInput(ids, tuple(sequences), tuple(range(len(ids))))
    expected = {}
    row = iter(ids)
    for s in sequences:
        for position in range(s.n_cached, s.n_cached + s.n_new):
            expected[next(row)] = (position, s.block_table[position // 32] * 32 + position % 32)
    tokens, positions, slots, rows, *_ = parts(batch, LAYOUT.shape_of(grouped(batch), len(ids)))
    assert (
        dict(zip(tokens.tolist(), zip(positions.tolist(), slots.tolist(), strict=True), strict=True))
        == expected
    )
    assert tokens[rows].tolist() == list(ids)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_cache_holds_finite_numbers_only(dtype: torch.dtype) -> None:
    """What must not be seen gets the weight 0, and 0 times infinity would be seen."""
    cache = TorchCache(1, 3, 32, ATTENTION, torch.device("cpu"), dtype)
    bad = torch.full((2, 2, 8), float("inf"), dtype=dtype)
    bad[1] = float("nan")
    cache.store(0, torch.tensor([40, 3]), bad, -bad)
    keys, values = cache.gather(0, torch.tensor([0, 1, 2, 3]), 2)
    assert keys.shape == (2, 2, 64, 8)
    assert torch.isfinite(keys).all()
    assert torch.isfinite(values).all()
    assert keys[0, :, 40].min() > 1e4
