"""Toy models: seeded random weights in every structural variant, small enough for the slowest decoder."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nanollama.model import rope
from nanollama.model.checkpoint import PackedTensor
from nanollama.model.spec import AttentionSpec, LayerSpec, MlpSpec, ModelSpec, NormSpec, RopeSpec
from nanollama.quant.formats import FORMATS

VOCAB = 61


@dataclass(frozen=True)
class Toy:
    """A spec and its weights, as float32 arrays and as the packed tensors a backend loads."""

    spec: ModelSpec
    arrays: dict[str, NDArray[np.float32]]

    @property
    def tensors(self) -> dict[str, PackedTensor]:
        return {name: packed(name, array) for name, array in self.arrays.items()}


def packed(name: str, array: NDArray[np.float32]) -> PackedTensor:
    return PackedTensor(name, FORMATS["F32"], array.shape, lambda: memoryview(array.tobytes()))


def llama_spec(
    *, tied: bool = False, bias: bool = False, head_dim: int = 16, rope_dim: int = 16, hidden: int = 64
) -> ModelSpec:
    layer = LayerSpec(RopeSpec(rope.frequencies(10000.0, rope_dim)))
    return ModelSpec(
        family="llama",
        vocab_size=VOCAB,
        hidden_size=hidden,
        max_context=512,
        attention=AttentionSpec(
            num_heads=6, num_kv_heads=2, head_dim=head_dim, scale=head_dim**-0.5, bias=bias
        ),
        mlp=MlpSpec(hidden + 32),
        norm=NormSpec(1e-5),
        layers=(layer,) * 3,
        tied_head=tied,
    )


def gemma3_spec() -> ModelSpec:
    local = LayerSpec(RopeSpec(rope.frequencies(10000.0, 32)), window=7)
    everywhere = LayerSpec(RopeSpec(rope.frequencies(1e6, 32), magnitude=1.1))
    return ModelSpec(
        family="gemma3",
        vocab_size=VOCAB,
        hidden_size=96,
        max_context=512,
        attention=AttentionSpec(num_heads=4, num_kv_heads=1, head_dim=32, scale=0.2, qk_norm=True),
        mlp=MlpSpec(128, activation="gelu_tanh"),
        norm=NormSpec(1e-6, post=True),
        layers=(local, local, everywhere, local),
        embedding_scale=96**0.5,
        tied_head=True,
    )


SPECS = {
    "llama": llama_spec(),
    "llama tied": llama_spec(tied=True),
    "llama with biases": llama_spec(bias=True),
    "llama with partial rope": llama_spec(rope_dim=6),
    "gemma3": gemma3_spec(),
    "llama of odd sizes": llama_spec(head_dim=10, rope_dim=10, hidden=36),
}
NATIVE_SPECS = [kind for kind in SPECS if kind != "llama of odd sizes"]
"""Kinds whose sizes the CPU kernels can run."""


def make_toy(kind: str, seed: int = 0) -> Toy:
    """A toy of one of the kinds in SPECS; the same seed gives the same weights."""
    spec = SPECS[kind]
    random = np.random.default_rng(seed)
    arrays: dict[str, NDArray[np.float32]] = {}

    def matrix(name: str, rows: int, columns: int) -> None:
        arrays[name] = (random.normal(0, 1.0, (rows, columns)) / columns**0.5).astype(np.float32)

    def vector(name: str, size: int, around: float = 1.0) -> None:
        arrays[name] = (around + random.normal(0, 0.2, size)).astype(np.float32)

    hidden, a, inner = spec.hidden_size, spec.attention, spec.mlp.intermediate_size
    matrix("model.embed_tokens.weight", spec.vocab_size, hidden)
    if not spec.tied_head:
        matrix("lm_head.weight", spec.vocab_size, hidden)
    vector("model.norm.weight", hidden)
    for i in range(spec.num_layers):
        p = f"model.layers.{i}"
        for name, rows in (("q_proj", a.q_size), ("k_proj", a.kv_size), ("v_proj", a.kv_size)):
            matrix(f"{p}.self_attn.{name}.weight", rows, hidden)
            if a.bias:
                vector(f"{p}.self_attn.{name}.bias", rows, around=0.0)
        matrix(f"{p}.self_attn.o_proj.weight", hidden, a.q_size)
        if a.qk_norm:
            vector(f"{p}.self_attn.q_norm.weight", a.head_dim)
            vector(f"{p}.self_attn.k_norm.weight", a.head_dim)
        norms = ["input_layernorm", "post_attention_layernorm"]
        if spec.norm.post:
            norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
        for name in norms:
            vector(f"{p}.{name}.weight", hidden)
        matrix(f"{p}.mlp.gate_proj.weight", inner, hidden)
        matrix(f"{p}.mlp.up_proj.weight", inner, hidden)
        matrix(f"{p}.mlp.down_proj.weight", hidden, inner)
    return Toy(spec, arrays)
