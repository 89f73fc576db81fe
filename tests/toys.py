"""Toy models: seeded random weights in every structural variant, small enough for the slowest decoder."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanollama.model import rope
from nanollama.model.checkpoint import PackedTensor
from nanollama.model.spec import (
    AttentionSpec,
    ExpertsSpec,
    LayerSpec,
    MlpSpec,
    ModelSpec,
    NormSpec,
    RopeSpec,
)
from nanollama.quant.formats import FORMATS

VOCAB = 61
DTYPES = {"F32": "<f4", "F16": "<f2"}


@dataclass(frozen=True)
class Toy:
    """A spec and its weights, as float32 arrays and as the packed tensors a backend loads.

    ``matrices`` is how those are stored, F32 or F16. The arrays are what a backend sees.
    """

    spec: ModelSpec
    arrays: dict[str, NDArray[np.float32]]
    matrices: str = "F32"

    @property
    def tensors(self) -> dict[str, PackedTensor]:
        return {
            name: packed(name, array, self.matrices if array.ndim > 1 else "F32")
            for name, array in self.arrays.items()
        }


def packed(name: str, array: NDArray[np.float32], fmt: str = "F32") -> PackedTensor:
    stored = array.astype(DTYPES[fmt])
    return PackedTensor(name, FORMATS[fmt], array.shape, lambda: memoryview(stored.tobytes()))


def llama_spec(
    *,
    tied: bool = False,
    bias: bool = False,
    head_dim: int = 16,
    rope_dim: int = 16,
    hidden: int = 64,
    attention: dict[str, Any] | None = None,
    mlp: dict[str, Any] | None = None,
    **more: Any,
) -> ModelSpec:
    layer = LayerSpec(RopeSpec(rope.frequencies(10000.0, rope_dim)))
    heads = {"num_heads": 6, "num_kv_heads": 2, "head_dim": head_dim, "scale": head_dim**-0.5, "bias": bias}
    fields = {
        "family": "llama",
        "vocab_size": VOCAB,
        "hidden_size": hidden,
        "max_context": 512,
        "attention": AttentionSpec(**heads | (attention or {})),
        "mlp": MlpSpec(hidden + 32, **mlp or {}),
        "norm": NormSpec(1e-5),
        "layers": (layer,) * 3,
        "tied_head": tied,
    }
    return ModelSpec(**fields | more)


def gemma3_spec() -> ModelSpec:
    local = LayerSpec(RopeSpec(rope.frequencies(10000.0, 32)), window=7)
    everywhere = LayerSpec(RopeSpec(rope.frequencies(1e6, 32), magnitude=1.1))
    return ModelSpec(
        family="gemma3",
        vocab_size=VOCAB,
        hidden_size=96,
        max_context=512,
        attention=AttentionSpec(num_heads=4, num_kv_heads=1, head_dim=32, scale=0.2, qk_norm="head"),
        mlp=MlpSpec(128, activation="gelu_tanh"),
        norm=NormSpec(1e-6, post=True),
        layers=(local, local, everywhere, local),
        embedding_scale=96**0.5,
        tied_head=True,
    )


def gemma2_spec() -> ModelSpec:
    rotation = RopeSpec(rope.frequencies(10000.0, 16))
    return llama_spec(
        tied=True,
        attention={"softcap": 2.0},
        norm=NormSpec(1e-6, post=True),
        layers=(LayerSpec(rotation, 7), LayerSpec(rotation)),
        logit_softcap=3.0,
    )


def gpt_oss_spec() -> ModelSpec:
    rotation = RopeSpec(rope.frequencies(10000.0, 16), magnitude=1.2)
    return llama_spec(
        attention={"bias": True, "output_bias": True, "sinks": True},
        mlp={
            "activation": "clamped_swiglu",
            "bias": True,
            "experts": ExpertsSpec(count=5, per_token=2, bias=True),
        },
        layers=(LayerSpec(rotation, 7), LayerSpec(rotation)),
    )


SPECS = {
    "llama": llama_spec(),
    "llama tied": llama_spec(tied=True),
    "llama with biases": llama_spec(bias=True),
    "llama with partial rope": llama_spec(rope_dim=6),
    "gemma3": gemma3_spec(),
    "llama with biases everywhere": llama_spec(
        bias=True, attention={"output_bias": True}, mlp={"bias": True}
    ),
    "scaled logits": llama_spec(logit_scale=0.25, embedding_scale=3.0),
    "rows normed, norms behind": llama_spec(
        attention={"qk_norm": "row"}, norm=NormSpec(1e-5, pre=False, post=True)
    ),
    "no positions": llama_spec(layers=(LayerSpec(RopeSpec(rope.frequencies(1e4, 16))), LayerSpec(None))),
    "soft caps": gemma2_spec(),
    "experts": llama_spec(mlp={"experts": ExpertsSpec(count=5, per_token=2, normalized=False)}),
    "gpt_oss": gpt_oss_spec(),
    "llama of odd sizes": llama_spec(head_dim=10, rope_dim=10, hidden=36),
    "rows normed, of odd sizes": llama_spec(
        head_dim=10,
        rope_dim=6,
        hidden=50,
        attention={"qk_norm": "row", "sinks": True},
        norm=NormSpec(1e-5, pre=False, post=True),
        logit_softcap=3.0,
    ),
    "experts of odd sizes": llama_spec(hidden=39, mlp={"experts": ExpertsSpec(count=3, per_token=1)}),
}


def make_toy(kind: str, seed: int = 0, matrices: str = "F32") -> Toy:
    """A toy of one of the kinds in SPECS; the same seed gives the same weights."""
    return toy_of(SPECS[kind], seed, matrices)


def toy_of(spec: ModelSpec, seed: int = 0, matrices: str = "F32") -> Toy:
    """A spec with random weights."""
    random = np.random.default_rng(seed)
    arrays: dict[str, NDArray[np.float32]] = {}

    def matrix(name: str, rows: int, columns: int) -> None:
        values = random.normal(0, 1.0, (rows, columns)) / columns**0.5
        arrays[name] = values.astype(DTYPES[matrices]).astype(np.float32)

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
        if a.output_bias:
            vector(f"{p}.self_attn.o_proj.bias", hidden, around=0.0)
        if a.qk_norm:
            heads = a.qk_norm == "head"
            vector(f"{p}.self_attn.q_norm.weight", a.head_dim if heads else a.q_size)
            vector(f"{p}.self_attn.k_norm.weight", a.head_dim if heads else a.kv_size)
        if a.sinks:
            vector(f"{p}.self_attn.sinks", a.num_heads)
        for name in (*spec.norm.before, *spec.norm.behind):
            vector(f"{p}.{name}.weight", hidden)
        mlps = [f"{p}.mlp"]
        if (experts := spec.mlp.experts) is not None:
            mlps = [f"{p}.mlp.experts.{expert}" for expert in range(experts.count)]
            matrix(f"{p}.mlp.gate.weight", experts.count, hidden)
            if experts.bias:
                vector(f"{p}.mlp.gate.bias", experts.count, around=0.0)
        for mlp in mlps:
            for name, rows, columns in (
                ("gate_proj", inner, hidden),
                ("up_proj", inner, hidden),
                ("down_proj", hidden, inner),
            ):
                matrix(f"{mlp}.{name}.weight", rows, columns)
                if spec.mlp.bias:
                    vector(f"{mlp}.{name}.bias", rows, around=0.0)
    return Toy(spec, arrays, matrices)
