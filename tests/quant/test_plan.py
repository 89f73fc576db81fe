"""Which type each tensor gets, against what llama.cpp's llama_model_quantize chooses."""

import pytest

from nanollama.quant.encode import ENCODABLE
from nanollama.quant.formats import FORMATS
from nanollama.quant.plan import FILE_TYPES, Stored, file_targets, misfits, size_text, target_format


def stored(name: str, *shape: int, fmt: str = "F32") -> Stored:
    return Stored(name, shape, FORMATS[fmt])


def table(*tensors: Stored) -> dict[str, Stored]:
    return {tensor.name: tensor for tensor in tensors}


def test_every_type_offered_can_be_encoded() -> None:
    assert set(FILE_TYPES) == set(ENCODABLE)


@pytest.mark.parametrize(
    ("wanted", "columns", "got"),
    [
        ("Q4_0", 64, "Q4_0"),
        ("Q4_K", 512, "Q4_K"),
        ("Q4_K", 576, "Q5_0"),
        ("Q5_K", 576, "Q5_1"),
        ("Q6_K", 576, "Q8_0"),
        ("Q4_K", 100, "F16"),
        ("Q8_0", 100, "F16"),
        ("BF16", 100, "BF16"),
    ],
)
def test_rows_that_blocks_do_not_fit_get_llama_cpps_next_type(wanted: str, columns: int, got: str) -> None:
    tensors = table(stored("blk.0.attn_q.weight", 8, columns))
    assert file_targets(tensors, wanted)["blk.0.attn_q.weight"].name == got
    assert bool(misfits(tensors, wanted)) == (wanted != got)


@pytest.mark.parametrize(
    ("wanted", "columns", "head"),
    [
        ("Q4_0", 512, "Q6_K"),
        ("Q4_0", 576, "Q8_0"),
        ("Q5_1", 512, "Q6_K"),
        ("Q6_K", 512, "Q6_K"),
        ("Q8_0", 512, "Q8_0"),
        ("F16", 512, "F16"),
    ],
)
def test_the_head_keeps_six_bits(wanted: str, columns: int, head: str) -> None:
    embedding, output = stored("token_embd.weight", 100, columns), stored("output.weight", 100, columns)
    assert file_targets(table(embedding), wanted)["token_embd.weight"].name == head
    untied = file_targets(table(embedding, output), wanted)
    assert untied["output.weight"].name == head
    assert untied["token_embd.weight"].name == wanted


@pytest.mark.parametrize(
    ("tensor", "got"),
    [
        (stored("blk.0.attn_norm.weight", 512), "F32"),
        (stored("blk.0.attn_norm.weight", 512, fmt="F16"), "F32"),
        (stored("blk.0.attn_q.bias", 512, fmt="BF16"), "F32"),
        (stored("blk.0.attn_q_norm.weight", 4, 512, fmt="F32"), "F32"),
        (stored("blk.0.ffn_gate_inp.weight", 8, 512, fmt="F32"), "F32"),
        (stored("blk.0.ffn_gate_exps.weight", 8, 64, 512, fmt="F16"), "Q4_0"),
        (stored("blk.0.attn_q.weight", 4, 512, fmt="IQ2_XXS"), "Q4_0"),
    ],
)
def test_only_matrices_of_weights_are_quantized(tensor: Stored, got: str) -> None:
    assert target_format(tensor, "Q4_0", is_head=False).name == got


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [(0, "0MB"), (1.43e8, "143MB"), (9.994e8, "999MB"), (9.996e8, "1GB"), (2.5e9, "2.5GB"), (7.04e9, "7GB")],
)
def test_sizes_are_short(n_bytes: float, text: str) -> None:
    assert size_text(n_bytes) == text
