"""gpt-oss experts in MXFP4: what transformers makes of blocks and scales is what we do."""

import numpy as np
import pytest
import torch
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from nanollama.errors import FormatError
from nanollama.model.mxfp4 import split_mxfp4
from nanollama.model.quantized import StoredTensor

STEM = "model.layers.0.mlp.experts.gate_up_proj"


def stored(name: str, array: np.ndarray, dtype: str = "U8") -> StoredTensor:
    return StoredTensor(name, dtype, array.shape, lambda: memoryview(array.tobytes()), lambda: None)


def random_blocks(rows: int = 6, per_row: int = 2) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(3)
    blocks = random.integers(0, 256, (3, rows, per_row, 16), np.uint8)
    return blocks, random.integers(118, 130, (3, rows, per_row), np.uint8)


def test_each_expert_has_the_numbers_of_transformers() -> None:
    blocks, scales = random_blocks()
    plain = stored("model.norm.weight", np.zeros(4, np.float32), "F32")
    tensors = {
        f"{STEM}_blocks": stored(f"{STEM}_blocks", blocks),
        f"{STEM}_scales": stored(f"{STEM}_scales", scales),
        plain.name: plain,
    }
    experts, rest = split_mxfp4(tensors)
    assert rest == {plain.name: plain}
    expected = convert_moe_packed_tensors(
        torch.from_numpy(blocks), torch.from_numpy(scales), dtype=torch.float32
    )
    for i in range(3):
        ours = experts[f"model.layers.0.mlp.experts.{i}.gate_up_proj.weight"].float32()
        assert np.array_equal(ours, expected[i].T.numpy())


@pytest.mark.parametrize("change", ["no scales", "other shape", "other type"])
def test_blocks_and_scales_that_do_not_fit_are_named(change: str) -> None:
    blocks, scales = random_blocks()
    tensors = {f"{STEM}_blocks": stored(f"{STEM}_blocks", blocks)}
    if change != "no scales":
        part = scales[:, :2] if change == "other shape" else scales
        tensors[f"{STEM}_scales"] = stored(f"{STEM}_scales", part, "F32" if change == "other type" else "U8")
    with pytest.raises(FormatError, match=r"gate_up_proj_blocks and .*gate_up_proj_scales"):
        split_mxfp4(tensors)
