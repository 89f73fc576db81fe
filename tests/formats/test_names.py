"""GGUF names to checkpoint names, and a whole model written as GGUF and read back."""

from pathlib import Path

import numpy as np
import pytest
import torch

from nanollama import reference
from nanollama.errors import FormatError, UnsupportedError
from nanollama.formats.gguf import GGUFFile
from nanollama.formats.gguf_write import write_gguf
from nanollama.formats.names import FUSED, GEMMA_NORMS, OSS_NORMS, gguf_name, hf_name
from nanollama.model.checkpoint import open_gguf
from nanollama.model.spec import ModelSpec
from nanollama.quant.formats import FORMATS
from toys import Toy, make_toy


@pytest.mark.parametrize(
    ("gguf", "names", "expected"),
    [
        ("token_embd.weight", {}, "model.embed_tokens.weight"),
        ("output.weight", {}, "lm_head.weight"),
        ("output_norm.weight", GEMMA_NORMS, "model.norm.weight"),
        ("blk.12.attn_q.weight", {}, "model.layers.12.self_attn.q_proj.weight"),
        ("blk.0.attn_k.bias", {}, "model.layers.0.self_attn.k_proj.bias"),
        ("blk.3.ffn_norm.weight", {}, "model.layers.3.post_attention_layernorm.weight"),
        ("blk.3.ffn_norm.weight", GEMMA_NORMS, "model.layers.3.pre_feedforward_layernorm.weight"),
        ("blk.3.post_attention_norm.weight", GEMMA_NORMS, "model.layers.3.post_attention_layernorm.weight"),
        ("blk.3.post_attention_norm.weight", OSS_NORMS, "model.layers.3.post_attention_layernorm.weight"),
        ("blk.3.post_ffw_norm.weight", GEMMA_NORMS, "model.layers.3.post_feedforward_layernorm.weight"),
        ("blk.3.ffn_up.weight", {}, "model.layers.3.mlp.up_proj.weight"),
        ("blk.3.ffn_gate_inp.bias", {}, "model.layers.3.mlp.gate.bias"),
        ("blk.3.attn_sinks.weight", {}, "model.layers.3.self_attn.sinks"),
    ],
)
def test_names_follow_the_table_both_ways(gguf: str, names: dict[str, str], expected: str) -> None:
    assert hf_name(gguf, names) == expected
    assert gguf_name(expected, names) == gguf


@pytest.mark.parametrize(
    ("gguf", "names", "whole", "parts"),
    [
        ("blk.0.attn_qkv.weight", FUSED, "self_attn.qkv_proj", [f"self_attn.{p}_proj" for p in "qkv"]),
        ("blk.0.ffn_up.weight", FUSED, "mlp.gate_up_proj", ["mlp.gate_proj", "mlp.up_proj"]),
        ("blk.0.ffn_down_exps.bias", {}, "mlp.experts.down_proj", ["mlp.experts.17.down_proj"]),
    ],
)
def test_parameters_that_lie_together_share_a_name(
    gguf: str, names: dict[str, str], whole: str, parts: list[str]
) -> None:
    kind = gguf.split(".")[-1]
    assert hf_name(gguf, names) == f"model.layers.0.{whole}.{kind}"
    for part in parts:
        assert gguf_name(f"model.layers.0.{part}.{kind}", names) == gguf


def test_experts_of_old_files_lie_apart() -> None:
    assert hf_name("blk.2.ffn_up.5.weight", {}) == "model.layers.2.mlp.experts.5.up_proj.weight"


@pytest.mark.parametrize(
    "name",
    ["blk.3.post_attention_norm.weight", "blk.x.attn_q.weight", "something.weight", "blk.0.attn_qkv.weight"],
)
def test_a_tensor_of_another_family_has_no_name(name: str) -> None:
    assert hf_name(name, {}) is None


def test_a_parameter_that_gguf_does_not_know_has_no_name() -> None:
    assert gguf_name("model.layers.0.self_attn.odd.weight", {}) is None
    assert gguf_name("model.vision.weight", {}) is None


def interleaved(array: np.ndarray, heads: int) -> np.ndarray:
    """Rows as GGUF files of the llama architecture store q and k: rotated pairs next to each other."""
    halves = array.reshape(heads, 2, -1, *array.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(array.shape)


def gguf_of(toy: Toy, path: Path, changes: dict[str, object] | None = None) -> Path:
    """A llama or gemma3 toy as a GGUF file."""
    spec = toy.spec
    a, arch = spec.attention, spec.family
    metadata: dict[str, object] = {
        "general.architecture": arch,
        f"{arch}.context_length": spec.max_context,
        f"{arch}.embedding_length": spec.hidden_size,
        f"{arch}.block_count": spec.num_layers,
        f"{arch}.feed_forward_length": spec.mlp.intermediate_size,
        f"{arch}.attention.head_count": a.num_heads,
        f"{arch}.attention.head_count_kv": a.num_kv_heads,
        f"{arch}.attention.key_length": a.head_dim,
        f"{arch}.attention.layer_norm_rms_epsilon": spec.norm.eps,
        f"{arch}.rope.dimension_count": spec.layers[0].rope.dim,
    }
    tensors = []
    for name, array in gguf_arrays(toy):
        data = array.astype(np.float32).tobytes()
        tensors.append((name, array.shape, FORMATS["F32"], data))
    write_gguf(path, metadata | (changes or {}), tensors)
    return path


def gguf_arrays(toy: Toy) -> list[tuple[str, np.ndarray]]:
    spec: ModelSpec = toy.spec
    candidates = ["token_embd", "output", "output_norm"]
    parts = [
        "attn_norm",
        "attn_q",
        "attn_k",
        "attn_v",
        "attn_output",
        "ffn_norm",
        "ffn_gate",
        "ffn_up",
        "ffn_down",
    ]
    candidates += [f"blk.{i}.{part}" for i in range(spec.num_layers) for part in parts]
    arrays = []
    for gguf in (f"{c}.{kind}" for c in candidates for kind in ("weight", "bias")):
        name = hf_name(gguf, {})
        if name is None or name not in toy.arrays:
            continue
        array = toy.arrays[name]
        heads = {"q_proj": spec.attention.num_heads, "k_proj": spec.attention.num_kv_heads}.get(
            name.split(".")[-2]
        )
        arrays.append((gguf, interleaved(array, heads) if heads else array))
    return arrays


@pytest.mark.parametrize("kind", ["llama", "llama tied", "llama with biases"])
def test_a_model_written_as_gguf_is_the_same_model(kind: str, tmp_path: Path) -> None:
    toy = make_toy(kind)
    checkpoint = open_gguf(gguf_of(toy, tmp_path / "toy.gguf"))
    assert set(checkpoint.tensors) == set(toy.arrays)
    for name, tensor in checkpoint.tensors.items():
        assert np.array_equal(tensor.float32(), toy.arrays[name]), name
    ids = [1, 5, 9, 60]
    params = {name: torch.from_numpy(t.float32()) for name, t in checkpoint.tensors.items()}
    expected = {name: torch.from_numpy(array) for name, array in toy.arrays.items()}
    checkpoint.close()
    assert torch.allclose(
        reference.logits(checkpoint.spec, params, ids), reference.logits(toy.spec, expected, ids), atol=1e-5
    )


def test_a_tensor_without_a_place_in_the_model_is_named(tmp_path: Path) -> None:
    toy = make_toy("llama")
    toy.arrays["extra"] = np.zeros(4, dtype=np.float32)
    path = tmp_path / "toy.gguf"
    tensors = [
        (n, a.shape, FORMATS["F32"], a.tobytes())
        for n, a in [*gguf_arrays(toy), ("blk.0.odd.weight", toy.arrays["extra"])]
    ]
    gguf_of(make_toy("llama"), path)
    with GGUFFile(path) as original:
        metadata = dict(original.metadata)
    write_gguf(path, metadata, tensors)
    with pytest.raises(FormatError, match=r"blk\.0\.odd\.weight"):
        open_gguf(path)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"general.architecture": "mamba"}, UnsupportedError, "mamba"),
        ({"llama.attention.head_count": 5}, FormatError, "5 attention heads"),
    ],
)
def test_files_that_make_no_model_are_refused(
    changes: dict[str, object], error: type[Exception], message: str, tmp_path: Path
) -> None:
    path = gguf_of(make_toy("llama"), tmp_path / "toy.gguf", changes)
    with pytest.raises(error, match=message):
        open_gguf(path)
