"""Which matrices take their activations in words."""

from collections.abc import Iterator

import numpy as np
import pytest

from nanollama.backends.native.library import Library
from nanollama.backends.native.memory import Arena
from nanollama.backends.native.packer import NativePacker
from nanollama.backends.native.repack import RepackQueue
from nanollama.backends.native.tape import Pool
from nanollama.model.checkpoint import PackedTensor
from nanollama.quant.formats import FORMATS
from packing import random_rows


@pytest.fixture
def packer(kernel_library: Library) -> Iterator[NativePacker]:
    pool, arena = Pool(kernel_library, 1), Arena(kernel_library, huge_pages=False)
    yield NativePacker(kernel_library, RepackQueue(pool), arena, num_layers=3)
    pool.close()
    arena.close()


def tensor(name: str, kind: str, layer: int = 1) -> PackedTensor:
    rows = random_rows(kind, 8, 256, np.random.default_rng(0))
    return PackedTensor(
        f"model.layers.{layer}.{name}.weight", FORMATS[kind], (8, 256), lambda: memoryview(rows)
    )


Q, OUT, GATE, UP, DOWN = (
    "self_attn.q_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)


@pytest.mark.parametrize(
    ("kinds", "fine"),
    [
        ({Q: "Q4_1"}, True),
        ({"lm_head": "Q4_1"}, True),
        ({OUT: "Q4_1"}, False),
        ({DOWN: "Q4_1"}, False),
        ({GATE: "Q4_1", UP: "Q4_1"}, False),
        ({GATE: "Q4_1", UP: "Q8_0"}, True),  # both read the same input
        ({GATE: "Q8_0", UP: "Q8_0"}, True),
        ({OUT: "Q5_1"}, True),
        ({Q: "Q4_0"}, False),
        ({Q: "Q6_K"}, False),
        ({Q: "F16"}, False),
    ],
)
def test_a_matrix_takes_words_where_they_bring_most(
    packer: NativePacker, kinds: dict[str, str], fine: bool
) -> None:
    weight = packer.matrix([tensor(name, kind) for name, kind in kinds.items()], [])
    assert weight.is_fine == fine


@pytest.mark.parametrize(("layer", "fine"), [(0, True), (1, False), (2, True)])
def test_the_first_and_the_last_layer_take_words_everywhere(
    packer: NativePacker, layer: int, fine: bool
) -> None:
    for name in (OUT, GATE, DOWN):
        assert packer.matrix([tensor(name, "Q4_1", layer)], []).is_fine == fine


@pytest.mark.parametrize(("layer", "fine"), [(1, False), (2, True)])
def test_experts_take_what_a_single_mlp_takes(packer: NativePacker, layer: int, fine: bool) -> None:
    parts = [tensor(f"mlp.experts.{i}.down_proj", "Q4_1", layer) for i in range(2)]
    assert packer.experts([parts[:1], parts[1:]], []).is_fine == fine
