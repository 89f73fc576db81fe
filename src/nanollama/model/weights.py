"""Filling the parameters: packed tensors of a checkpoint in, a backend's ModelWeights out.

Every tensor of the file is used and every parameter of the model is filled, or an error names what is left
over or missing.
"""

from collections.abc import Mapping, Sequence
from typing import Generic, Protocol, TypeVar

from nanollama.errors import FormatError
from nanollama.model.checkpoint import PackedTensor
from nanollama.model.spec import ModelSpec
from nanollama.model.transformer import LayerWeights, ModelWeights

Weight = TypeVar("Weight")
WeightOut = TypeVar("WeightOut", covariant=True)


class Packer(Protocol[WeightOut]):
    """How a backend takes in parameters. Each packed tensor is read once and not kept."""

    def matrix(self, parts: Sequence[PackedTensor], biases: Sequence[PackedTensor]) -> WeightOut:
        """Matrices ``[out, in]`` that share their input, merged; ``biases``: none, or a vector each."""
        ...

    def vector(self, tensor: PackedTensor) -> WeightOut:
        """A norm weight, kept in float32."""
        ...

    def embedding(self, tensor: PackedTensor, *, is_head: bool) -> WeightOut:
        """The embedding table ``[vocab, hidden]``; with ``is_head`` it is the output matrix too."""
        ...


class _Reader(Generic[Weight]):
    """Hands out tensors by name, checks their shapes, and remembers which were used."""

    def __init__(self, tensors: Mapping[str, PackedTensor], packer: Packer[Weight]) -> None:
        self.tensors = tensors
        self.packer = packer
        self.used: set[str] = set()

    def take(self, name: str, shape: tuple[int, ...]) -> PackedTensor:
        tensor = self.tensors.get(name)
        if tensor is None:
            raise FormatError(f"the model file has no tensor for {name}; the file is incomplete")
        if tensor.shape != shape:
            raise FormatError(
                f"the tensor for {name} has shape {list(tensor.shape)}; expected {list(shape)} "
                "from the model's settings"
            )
        self.used.add(name)
        return tensor

    def vector(self, name: str, size: int) -> Weight:
        return self.packer.vector(self.take(f"{name}.weight", (size,)))

    def matrix(self, prefix: str, rows: Mapping[str, int], columns: int, *, bias: bool = False) -> Weight:
        parts = [self.take(f"{prefix}.{name}.weight", (n, columns)) for name, n in rows.items()]
        biases = [self.take(f"{prefix}.{name}.bias", (n,)) for name, n in rows.items()] if bias else []
        return self.packer.matrix(parts, biases)


def load_weights(
    spec: ModelSpec, tensors: Mapping[str, PackedTensor], packer: Packer[Weight]
) -> ModelWeights[Weight]:
    """Pack all parameters of ``spec``.

    Raises:
        FormatError: a tensor is missing, has another shape than the spec asks for, or is left over.
    """
    reader = _Reader(tensors, packer)
    table = reader.take("model.embed_tokens.weight", (spec.vocab_size, spec.hidden_size))
    embedding = packer.embedding(table, is_head=spec.tied_head)
    if spec.tied_head:
        head = embedding
    else:
        head = packer.matrix([reader.take("lm_head.weight", (spec.vocab_size, spec.hidden_size))], [])
    layers = [_layer(reader, spec, f"model.layers.{i}") for i in range(spec.num_layers)]
    norm = reader.vector("model.norm", spec.hidden_size)
    if unused := sorted(set(tensors) - reader.used):
        raise FormatError(
            f"the model file has {len(unused)} tensors that the model does not use, the first {unused[0]}; "
            "its settings and its tensors do not belong together"
        )
    return ModelWeights(embedding, layers, norm, head)


def _layer(reader: _Reader[Weight], spec: ModelSpec, prefix: str) -> LayerWeights[Weight]:
    a, hidden, post = spec.attention, spec.hidden_size, spec.norm.post
    attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
    # Llama calls the norm in front of the MLP "post attention"; with post-norms that name is the norm behind
    # attention.
    mlp_norm = "pre_feedforward_layernorm" if post else "post_attention_layernorm"
    return LayerWeights(
        input_norm=reader.vector(f"{prefix}.input_layernorm", hidden),
        qkv=reader.matrix(
            attention, {"q_proj": a.q_size, "k_proj": a.kv_size, "v_proj": a.kv_size}, hidden, bias=a.bias
        ),
        q_norm=reader.vector(f"{attention}.q_norm", a.head_dim) if a.qk_norm else None,
        k_norm=reader.vector(f"{attention}.k_norm", a.head_dim) if a.qk_norm else None,
        o=reader.matrix(attention, {"o_proj": hidden}, a.q_size),
        post_attention_norm=reader.vector(f"{prefix}.post_attention_layernorm", hidden) if post else None,
        mlp_norm=reader.vector(f"{prefix}.{mlp_norm}", hidden),
        gate_up=reader.matrix(
            mlp, {"gate_proj": spec.mlp.intermediate_size, "up_proj": spec.mlp.intermediate_size}, hidden
        ),
        down=reader.matrix(mlp, {"down_proj": hidden}, spec.mlp.intermediate_size),
        post_mlp_norm=reader.vector(f"{prefix}.post_feedforward_layernorm", hidden) if post else None,
    )
