"""Which type each tensor gets, against what llama.cpp's llama_model_quantize chooses."""

import ctypes
from math import prod
from pathlib import Path

import pytest

from llama_oracle import library
from nanollama.errors import UsageError
from nanollama.formats.gguf import GGUFFile
from nanollama.formats.gguf_write import Value, write_gguf
from nanollama.quant.encode import ENCODABLE
from nanollama.quant.formats import FORMATS
from nanollama.quant.plan import (
    ALIASES,
    FILE_TYPES,
    Stored,
    file_targets,
    file_type,
    misfits,
    size_text,
    target_format,
)


def stored(name: str, *shape: int, fmt: str = "F32") -> Stored:
    return Stored(name, shape, FORMATS[fmt])


def table(*tensors: Stored) -> dict[str, Stored]:
    return {tensor.name: tensor for tensor in tensors}


def test_every_type_that_a_file_gets_can_be_encoded() -> None:
    tensors = layers(32, "attn_v", "attn_qkv", "ffn_down", "attn_output")
    got = {fmt.name for wanted in FILE_TYPES for fmt in file_targets(tensors, wanted).values()}
    assert got == set(ENCODABLE)


@pytest.mark.parametrize("name", [*FILE_TYPES, *ALIASES])
def test_types_are_known_in_any_case(name: str) -> None:
    assert file_type(name.lower()) == file_type(name) in FILE_TYPES


def test_an_unknown_type_is_refused_with_the_list() -> None:
    with pytest.raises(UsageError, match="'Q3_K' is no type to quantize to; expected one of Q8_0, Q4_0"):
        file_type("Q3_K")


def layers(count: int, *parts: str, rows: int = 64) -> dict[str, Stored]:
    return table(*(stored(f"blk.{i}.{part}.weight", rows, 256) for i in range(count) for part in parts))


DENSE = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
HEADS = {"attention.head_count": 4, "attention.head_count_kv": 4}
LLAMA = {"general.architecture": "llama"} | {f"llama.{key}": value for key, value in HEADS.items()}
PHI = {"general.architecture": "phi3"} | {f"phi3.{key}": value for key, value in HEADS.items()}


def dense(count: int) -> tuple[dict[str, Value], list[Stored]]:
    tensors = [stored(f"blk.{i}.{part}.weight", 256, 256) for i in range(count) for part in DENSE]
    return LLAMA, tensors


def grouped() -> tuple[dict[str, Value], list[Stored]]:
    metadata, tensors = dense(80)
    kv = ("attn_k.weight", "attn_v.weight")
    tensors = [stored(t.name, 128 if t.name.endswith(kv) else 256, 256) for t in tensors]
    return metadata | {"llama.attention.head_count_kv": 2}, tensors


def experts(count: int) -> tuple[dict[str, Value], list[Stored]]:
    tensors = [t for t in dense(8)[1] if ".ffn_" not in t.name]
    for i in range(8):
        tensors += [
            stored(f"blk.{i}.ffn_{part}_exps.weight", count, 256, 256) for part in ("gate", "up", "down")
        ]
        tensors.append(stored(f"blk.{i}.ffn_gate_inp.weight", count, 256))
    more: dict[str, Value] = {"llama.expert_count": count, "llama.expert_used_count": 2}
    return LLAMA | more, tensors


def fused() -> tuple[dict[str, Value], list[Stored]]:
    tensors = []
    for i in range(9):
        shapes = {
            "attn_qkv": (768, 256),
            "attn_output": (256, 256),
            "ffn_up": (512, 256),
            "ffn_down": (256, 256),
        }
        tensors += [stored(f"blk.{i}.{part}.weight", *shape) for part, shape in shapes.items()]
    return PHI, tensors


MODELS = {"20 layers": dense(20), "grouped, 80 layers": grouped(), "8 experts": experts(8)}
MODELS |= {"4 experts": experts(4), "fused": fused()}
MIXTURES = ("Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M")


def write_zeros(path: Path, metadata: dict[str, Value], tensors: list[Stored]) -> None:
    """A model that llama.cpp opens; what its weights are does not matter to their types."""
    name = metadata["general.architecture"]
    count = 1 + max(int(tensor.name.split(".")[1]) for tensor in tensors)
    sizes = {"context_length": 64, "embedding_length": 256, "feed_forward_length": 256, "block_count": count}
    keys: dict[str, Value] = {f"{name}.{key}": value for key, value in sizes.items()}
    keys |= {f"{name}.attention.layer_norm_rms_epsilon": 1e-5, "tokenizer.ggml.model": "none"}
    keys |= {f"{name}.rope.dimension_count": 64, f"{name}.vocab_size": 32}
    norms = [stored(f"blk.{i}.{part}_norm.weight", 256) for i in range(count) for part in ("attn", "ffn")]
    ends = [stored("output_norm.weight", 256)]
    ends += [stored(f"{part}.weight", 32, 256) for part in ("token_embd", "output")]
    every = [
        Stored(t.name, t.shape, FORMATS["F16" if len(t.shape) > 1 else "F32"]) for t in tensors + norms + ends
    ]
    write_gguf(
        path, metadata | keys, [(t.name, t.shape, t.fmt, bytes(t.fmt.nbytes(prod(t.shape)))) for t in every]
    )


@pytest.mark.parametrize("model", MODELS)
def test_mixtures_are_llama_cpps(model: str, tmp_path: Path) -> None:
    llama_cpp = library()
    source, target = tmp_path / "source.gguf", tmp_path / "target.gguf"
    write_zeros(source, *MODELS[model])
    with GGUFFile(source) as file:
        tensors = {info.name: Stored(info.name, info.shape, info.fmt) for info in file.tensors.values()}
    for wanted in MIXTURES if "80" not in model else MIXTURES[1:2]:
        settings = llama_cpp.llama_model_quantize_default_params()
        settings.ftype, settings.nthread = FILE_TYPES[wanted], 1
        assert llama_cpp.llama_model_quantize(bytes(source), bytes(target), ctypes.byref(settings)) == 0
        with GGUFFile(target) as file:
            theirs = {info.name: info.fmt.name for info in file.tensors.values()}
        ours = file_targets(tensors, wanted)
        assert {name: fmt.name for name, fmt in ours.items()} == theirs


@pytest.mark.parametrize(
    ("wanted", "columns", "got"),
    [
        ("Q4_0", 64, "Q4_0"),
        ("Q4_K_S", 512, "Q4_K"),
        ("Q4_K_S", 576, "Q5_0"),
        ("Q5_K_S", 576, "Q5_1"),
        ("Q6_K", 576, "Q8_0"),
        ("Q4_K_S", 100, "F16"),
        ("Q8_0", 100, "F16"),
        ("BF16", 100, "BF16"),
    ],
)
def test_rows_that_blocks_do_not_fit_get_llama_cpps_next_type(wanted: str, columns: int, got: str) -> None:
    tensors = table(stored("blk.0.attn_q.weight", 8, columns))
    assert file_targets(tensors, wanted)["blk.0.attn_q.weight"].name == got
    assert bool(misfits(tensors, wanted)) == (wanted.removesuffix("_S") != got)


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
