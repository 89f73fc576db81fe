"""Filling the parameters: packed tensors of a checkpoint in, a backend's ModelWeights out.

Every tensor of the file is used and every parameter of the model is filled, or an error names what is left
over or missing.
"""

from collections.abc import Mapping, Sequence
from typing import Generic, Protocol, TypeVar

from nanollama.errors import FormatError
from nanollama.model.checkpoint import PackedTensor
from nanollama.model.parameters import scaled
from nanollama.model.spec import ModelSpec
from nanollama.model.transformer import LayerWeights, ModelWeights
from nanollama.quant.formats import FORMATS

Weight = TypeVar("Weight")
WeightOut = TypeVar("WeightOut", covariant=True)


class Packer(Protocol[WeightOut]):
    """How a backend takes in parameters. Each packed tensor is read once and not kept."""

    def matrix(self, parts: Sequence[PackedTensor], biases: Sequence[PackedTensor]) -> WeightOut:
        """Matrices ``[out, in]`` that share their input, merged; ``biases``: none, or a vector each."""
        ...

    def vector(self, tensor: PackedTensor) -> WeightOut:
        """A norm weight or the sinks of a layer, kept in float32."""
        ...

    def experts(
        self, experts: Sequence[Sequence[PackedTensor]], biases: Sequence[Sequence[PackedTensor]]
    ) -> WeightOut:
        """For each expert what :meth:`matrix` takes, of the same sizes; ``biases``: none, or each one's."""
        ...

    def embedding(self, tensor: PackedTensor, *, is_head: bool) -> WeightOut:
        """The embedding table ``[vocab, hidden]``; with ``is_head`` it is the output matrix too."""
        ...


class _Reader(Generic[Weight]):
    """Hands out tensors by name, checks their shapes, and remembers which were used."""

    def __init__(self, tensors: Mapping[str, PackedTensor], packer: Packer[Weight]) -> None:
        self.tensors = tensors
        self.packer = packer
        self.used: dict[str, tuple[int, ...]] = {}

    def take(self, name: str, shape: tuple[int, ...]) -> PackedTensor:
        tensor = self.tensors.get(name)
        if tensor is None:
            raise FormatError(f"the model file has no tensor for {name}; the file is incomplete")
        if tensor.shape != shape:
            raise FormatError(
                f"the tensor for {name} has shape {list(tensor.shape)}; expected {list(shape)} "
                "from the model's settings"
            )
        self.used[name] = shape
        return tensor

    def vector(self, name: str, size: int) -> Weight:
        return self.packer.vector(self.take(name, (size,)))

    def matrix(self, prefix: str, rows: Mapping[str, int], columns: int, *, bias: bool = False) -> Weight:
        return self.packer.matrix(*self._parts(prefix, rows, columns, bias))

    def experts(
        self, prefix: str, count: int, rows: Mapping[str, int], columns: int, *, bias: bool = False
    ) -> Weight:
        parts = [self._parts(f"{prefix}.experts.{i}", rows, columns, bias) for i in range(count)]
        return self.packer.experts([p for p, _ in parts], [b for _, b in parts] if bias else [])

    def _parts(
        self, prefix: str, rows: Mapping[str, int], columns: int, bias: bool
    ) -> tuple[list[PackedTensor], list[PackedTensor]]:
        parts = [self.take(f"{prefix}.{name}.weight", (n, columns)) for name, n in rows.items()]
        biases = [self.take(f"{prefix}.{name}.bias", (n,)) for name, n in rows.items()] if bias else []
        return parts, biases


def load_weights(
    spec: ModelSpec, tensors: Mapping[str, PackedTensor], packer: Packer[Weight]
) -> ModelWeights[Weight]:
    """Pack all parameters of ``spec``.

    Raises:
        FormatError: a tensor is missing, has another shape than the spec asks for, or is left over.
    """
    reader = _Reader(tensors, packer)
    weights = _packed(reader, spec)
    if unused := sorted(set(tensors) - set(reader.used)):
        counted = "1 tensor" if len(unused) == 1 else f"{len(unused)} tensors"
        raise FormatError(
            f"the model file has {counted} that the model does not use, the first {unused[0]}; its settings "
            "and its tensors do not belong together: fetch it again"
        )
    return weights


def parameter_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter of ``spec``, in the order of :func:`load_weights`."""
    lister = _Lister({}, _Nothing())
    _packed(lister, spec)
    return lister.used


class _Lister(_Reader[None]):
    """A reader that has every tensor it is asked for, with nothing in it."""

    def take(self, name: str, shape: tuple[int, ...]) -> PackedTensor:
        self.used[name] = shape
        return PackedTensor(name, FORMATS["F32"], shape, lambda: memoryview(b""))


class _Nothing:
    """A packer that takes nothing in."""

    def matrix(self, parts: Sequence[PackedTensor], biases: Sequence[PackedTensor]) -> None: ...

    def vector(self, tensor: PackedTensor) -> None: ...

    def experts(
        self, experts: Sequence[Sequence[PackedTensor]], biases: Sequence[Sequence[PackedTensor]]
    ) -> None: ...

    def embedding(self, tensor: PackedTensor, *, is_head: bool) -> None: ...


def _packed(reader: _Reader[Weight], spec: ModelSpec) -> ModelWeights[Weight]:
    table = reader.take("model.embed_tokens.weight", (spec.vocab_size, spec.hidden_size))
    embedding = reader.packer.embedding(table, is_head=spec.tied_head)
    if spec.tied_head:
        head = embedding
    else:
        head = reader.packer.matrix([reader.take("lm_head.weight", (spec.vocab_size, spec.hidden_size))], [])
    layers = [_layer(reader, spec, f"model.layers.{i}") for i in range(spec.num_layers)]
    norm = reader.take("model.norm.weight", (spec.hidden_size,))
    if spec.logit_scale is not None:  # the output matrix is linear: its input may as well be scaled
        norm = scaled(norm, spec.logit_scale)
    final_norm = reader.packer.vector(norm)
    return ModelWeights(embedding, layers, final_norm, head)


def _layer(reader: _Reader[Weight], spec: ModelSpec, prefix: str) -> LayerWeights[Weight]:
    a, hidden = spec.attention, spec.hidden_size
    attention = f"{prefix}.self_attn"
    q_norm, k_norm = {None: (0, 0), "head": (a.head_dim, a.head_dim), "row": (a.q_size, a.kv_size)}[a.qk_norm]

    def norm(name: str, size: int = hidden) -> Weight:
        return reader.vector(f"{prefix}.{name}.weight", size)

    before, behind = spec.norm.before, spec.norm.behind
    # Taken in the order of their use, so that backends that pack one behind the other read memory forwards.
    return LayerWeights(
        input_norm=norm(before[0]) if before else None,
        qkv=reader.matrix(
            attention, {"q_proj": a.q_size, "k_proj": a.kv_size, "v_proj": a.kv_size}, hidden, bias=a.bias
        ),
        q_norm=norm("self_attn.q_norm", q_norm) if a.qk_norm else None,
        k_norm=norm("self_attn.k_norm", k_norm) if a.qk_norm else None,
        sinks=reader.vector(f"{attention}.sinks", a.num_heads) if a.sinks else None,
        o=reader.matrix(attention, {"o_proj": hidden}, a.q_size, bias=a.output_bias),
        post_attention_norm=norm(behind[0]) if behind else None,
        mlp_norm=norm(before[1]) if before else None,
        router=(mlp := _mlp(reader, spec, f"{prefix}.mlp"))[0],
        gate_up=mlp[1],
        down=mlp[2],
        post_mlp_norm=norm(behind[1]) if behind else None,
    )


def _mlp(reader: _Reader[Weight], spec: ModelSpec, prefix: str) -> tuple[Weight | None, Weight, Weight]:
    """The router, if there are experts, and the merged and the closing matrix of the MLP or all of them."""
    mlp, hidden, inner = spec.mlp, spec.hidden_size, spec.mlp.intermediate_size
    merged, closing = {"gate_proj": inner, "up_proj": inner}, {"down_proj": hidden}
    if (experts := mlp.experts) is None:
        return (
            None,
            reader.matrix(prefix, merged, hidden, bias=mlp.bias),
            reader.matrix(prefix, closing, inner, bias=mlp.bias),
        )
    return (
        reader.matrix(prefix, {"gate": experts.count}, hidden, bias=experts.bias),
        reader.experts(prefix, experts.count, merged, hidden, bias=mlp.bias),
        reader.experts(prefix, experts.count, closing, inner, bias=mlp.bias),
    )
