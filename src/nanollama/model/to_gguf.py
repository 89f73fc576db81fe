"""A checkpoint as GGUF: its spec, configuration and parameters in; metadata keys and tensors of a file out.

Keys and layouts are those that llama.cpp's converter writes. Weights keep the type they are stored in:
nothing is computed but the order of rows.
"""

import math
import re
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from nanollama.errors import UnsupportedError
from nanollama.formats.gguf_write import TensorSource, Value
from nanollama.formats.names import FUSED_PARTS, gguf_name
from nanollama.model import rope
from nanollama.model.checkpoint import PackedTensor
from nanollama.model.families.config import Config
from nanollama.model.families.metadata import Metadata
from nanollama.model.families.rotation import scaling_of
from nanollama.model.registry import Family
from nanollama.model.spec import AttentionSpec, MlpSpec, ModelSpec, RopeSpec
from nanollama.quant.formats import FORMATS

_STATED = {
    "max_position_embeddings": "context_length",
    "vocab_size": "vocab_size",
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_local_experts": "expert_count",
    "num_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "moe_intermediate_size": "expert_feed_forward_length",
}
"""Whole numbers of a config.json and the GGUF keys that state them."""

_SCALES = {
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "attention_multiplier": "attention.scale",
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "logits_scaling": "logit_scale",
}
"""Other numbers of a config.json and the GGUF keys that state them."""

_SAID_BY = {
    "attention.scale": ("the scale of scores", ("query_pre_attn_scalar", "attention_multiplier")),
    "attention.softcap": ("the cap of scores", ("attn_logit_softcapping",)),
    "attention.bias": ("biases of q, k and v", ("attention_bias",)),
    "attention.output_bias": ("the bias behind attention", ("attention_bias",)),
    "mlp.bias": ("biases of the MLP", ("mlp_bias",)),
    "mlp.experts": ("how experts are weighed", ("norm_topk_prob",)),
    "logit_softcap": ("the cap of logits", ("final_logit_softcapping",)),
    "max_context": ("a window that grows", ("rope_parameters", "rope_scaling")),
    "windows": (
        "which layers have a window",
        ("layer_types", "use_sliding_window", "sliding_window", "max_window_layers"),
    ),
    "rope": ("rotations", ("rope_parameters", "rope_scaling", "no_rope_layers", "no_rope_layer_interval")),
}
"""Fields of a ModelSpec that some GGUF files can't tell: what they are about, and the keys of a config.json
that state them."""

_EXPERT = re.compile(r"\.experts\.(\d+)\.")
_MERGED = [part for parts in FUSED_PARTS.values() for part in parts]


def gguf_of_folder(
    family: Family, spec: ModelSpec, config: Config, tensors: Mapping[str, PackedTensor]
) -> tuple[dict[str, Value], list[TensorSource]]:
    """The keys about the model itself (no tokenizer, no name) and the tensors of the file.

    Raises:
        UnsupportedError: GGUF files of the architecture can't say what the configuration does.
        FormatError: a value of the configuration is out of range.
    """
    divisors = _divisors(spec, config)
    metadata = _metadata(family, spec, config)
    sources: list[TensorSource] = [
        (name, (len(d),), FORMATS["F32"], array("f", d).tobytes()) for name, d in divisors.items()
    ]
    sources += _tensors(family, spec, tensors)
    has_tensor = {name for name, *_ in sources}.__contains__
    read = family.from_gguf(Metadata(family.gguf, metadata, divisors.get, has_tensor, spec.vocab_size))
    if lost := _lost(spec, read):
        raise UnsupportedError(
            f"GGUF files of the architecture {family.gguf!r} can't say what this model's config.json does "
            f"about {' and '.join(_said(field, config) for field in lost)}; use the folder itself"
        )
    return metadata, sources


def _metadata(family: Family, spec: ModelSpec, config: Config) -> dict[str, Value]:
    a = spec.attention
    keys: dict[str, Value] = {gguf: config.size(name) for name, gguf in _STATED.items() if config.has(name)}
    keys |= {gguf: config.number(name) for name, gguf in _SCALES.items() if config.has(name)}
    keys["attention.head_count_kv"] = a.num_kv_heads
    keys["attention.key_length"] = keys["attention.value_length"] = a.head_dim
    if spec.mlp.experts is not None:
        keys["expert_feed_forward_length"] = spec.mlp.intermediate_size
    windows = [layer.window for layer in spec.layers if layer.window is not None]
    if window := max(windows, default=config.size("sliding_window", 0, minimum=0)):
        keys["attention.sliding_window"] = window
    if (turned := _turned(spec)) is not None:
        keys |= _rope_keys(turned, config)
    return {"general.architecture": family.gguf} | {f"{family.gguf}.{key}": keys[key] for key in keys}


def _turned(spec: ModelSpec) -> RopeSpec | None:
    """The rotation that a file's keys are about: that of the layers that see everything."""
    turned = [layer for layer in spec.layers if layer.rope is not None]
    everywhere = [layer.rope for layer in turned if layer.window is None] or [layer.rope for layer in turned]
    return everywhere[0] if everywhere else None


def _rope_keys(chosen: RopeSpec, config: Config) -> dict[str, Value]:
    kind, scaling, theta = scaling_of(config, layers="full_attention")
    keys: dict[str, Value] = {"rope.dimension_count": chosen.dim, "rope.freq_base": theta}
    parameters = config.inside("rope_parameters")
    if parameters is not None and parameters.has("sliding_attention"):
        keys["rope.freq_base_swa"] = scaling_of(config, layers="sliding_attention")[2]
    elif config.has("rope_local_base_freq"):
        keys["rope.freq_base_swa"] = config.number("rope_local_base_freq")
    if kind == "longrope" and chosen.short_context is not None:
        keys["rope.scaling.original_context_length"] = chosen.short_context
        keys["rope.scaling.attn_factor"] = chosen.magnitude
    elif kind in ("linear", "yarn"):
        factor = scaling.number("factor")
        keys |= {"rope.scaling.type": kind, "rope.scaling.factor": factor}
        if kind == "yarn":
            trained = config.size("max_position_embeddings")
            original = scaling.size("original_max_position_embeddings", trained)
            keys["rope.scaling.original_context_length"] = original
            keys["rope.scaling.yarn_beta_fast"] = scaling.number("beta_fast", 32.0)
            keys["rope.scaling.yarn_beta_slow"] = scaling.number("beta_slow", 1.0)
            keys["rope.scaling.yarn_attn_factor"] = chosen.magnitude / rope.yarn_magnitude(factor)
    return keys


def _divisors(spec: ModelSpec, config: Config) -> dict[str, tuple[float, ...]]:
    """The tensors that configure the rotation: Llama 3's divisors, and LongRoPE's two sets of them."""
    turned = _turned(spec)
    kind, scaling, theta = scaling_of(config, layers="full_attention")
    if turned is None or kind not in ("llama3", "longrope"):
        return {}
    base = rope.frequencies(theta, turned.dim)
    if kind == "longrope":
        return {
            f"rope_factors_{which}.weight": scaling.numbers(f"{which}_factor", len(base))
            for which in ("short", "long")
        }
    return {"rope_freqs.weight": rope.divided(base, turned.frequencies)}


def _lost(spec: ModelSpec, read: ModelSpec) -> list[str]:
    """What of ``spec`` the file does not tell: ``read`` is what its reader makes of it."""
    lost = _different(replace(spec, family="", layers=()), replace(read, family="", layers=()))
    pairs = list(zip(spec.layers, read.layers, strict=True))
    if any(a.window != b.window for a, b in pairs):
        lost.append("windows")
    if not all(_equal(a.rope, b.rope) for a, b in pairs):
        lost.append("rope")
    return lost


def _different(a: Any, b: Any, prefix: str = "") -> list[str]:
    """The names of the fields in which two specs differ, ``mlp.bias`` for one inside."""
    found: list[str] = []
    for name in (field.name for field in fields(a)):
        left, right = getattr(a, name), getattr(b, name)
        if isinstance(left, AttentionSpec | MlpSpec):
            found += _different(left, right, f"{name}.")
        elif left != right:
            found.append(prefix + name)
    return found


def _said(field: str, config: Config) -> str:
    """``rotations (rope_scaling)``: what a field is about, and the keys of ``config`` that state it."""
    what, keys = _SAID_BY.get(field, (field, ()))
    stated = [key for key in keys if key in config.values]
    return f"{what} ({', '.join(stated)})" if stated else what


def _equal(a: RopeSpec | None, b: RopeSpec | None) -> bool:
    """The same rotation, but for what float32 loses."""
    if a is None or b is None:
        return a is b
    pairs = [
        (a.magnitude, b.magnitude),
        *zip(a.frequencies, b.frequencies, strict=False),
        *zip(a.long_frequencies or (), b.long_frequencies or (), strict=False),
    ]
    return (a.dim, a.short_context) == (b.dim, b.short_context) and all(
        math.isclose(x, y, rel_tol=1e-4) for x, y in pairs
    )


def _tensors(family: Family, spec: ModelSpec, tensors: Mapping[str, PackedTensor]) -> list[TensorSource]:
    """Experts stacked, what the family fuses fused, rows in GGUF's order."""
    groups: dict[str, list[tuple[tuple[int, int], PackedTensor]]] = {}
    for name, tensor in tensors.items():
        target = gguf_name(name, family.gguf_names)
        if target is None:
            raise UnsupportedError(f"GGUF has no name for the tensor {name} in a model of {family.gguf}")
        groups.setdefault(target, []).append((_place(name), _in_order(family, spec, name, tensor)))
    sources: list[TensorSource] = []
    for target, members in groups.items():
        parts = [tensor for _, tensor in sorted(members, key=lambda member: member[0])]
        sources.append(_merged(target, parts, stacked="_exps." in target))
    return sources


def _place(name: str) -> tuple[int, int]:
    """Where a parameter lies in a tensor that it shares: by expert, then by part."""
    expert = _EXPERT.search(name)
    part = name.split(".", 3)[-1].rsplit(".", 1)[0]
    return int(expert[1]) if expert else 0, _MERGED.index(part) if part in _MERGED else 0


def _in_order(family: Family, spec: ModelSpec, name: str, tensor: PackedTensor) -> PackedTensor:
    """Rows of q and k as the family's GGUF files have them."""
    a = spec.attention
    heads = {"q_proj": a.num_heads, "k_proj": a.num_kv_heads}.get(name.split(".")[-2])
    if heads is None or not family.pairs_interleaved:
        return tensor

    def read() -> memoryview:
        import numpy as np

        rows = tensor.packed().reshape(tensor.shape[0], -1)
        halves = rows.reshape(heads, 2, -1, rows.shape[1])
        return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(-1).data

    return replace(tensor, read=read, paired_heads=None)


def _merged(name: str, parts: Sequence[PackedTensor], *, stacked: bool) -> TensorSource:
    """One tensor of the file out of the parameters in it. Vectors become float32, as llama.cpp needs them."""
    first = parts[0]
    rows = sum(part.shape[0] for part in parts)
    shape = (len(parts), *first.shape) if stacked else (rows, *first.shape[1:])
    plain = len(first.shape) == 1 or len({part.fmt for part in parts}) > 1
    fmt = FORMATS["F32"] if plain else first.fmt

    def read() -> bytes:
        return b"".join((part.float32() if plain else part.packed()).tobytes() for part in parts)

    return name, shape, fmt, read
