"""What a model is, as data: a frozen ModelSpec, built by a family and read by recipe and backends.

Everything that distinguishes one supported architecture from another is a field here; no other module tests
an architecture's name. Sizes are element counts, frequencies are radians per position.
"""

from dataclasses import dataclass, replace
from typing import Literal

from nanollama.errors import FormatError
from nanollama.model import rope

Activation = Literal["silu", "gelu_tanh", "clamped_swiglu"]
QkNorm = Literal["head", "row"]


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary position embedding (Su et al. 2021, RoFormer) with any frequency scaling already folded in.

    Pair i of a head, that is elements (i, i + dim/2) in the half-split order of Hugging Face checkpoints, is
    rotated by ``position * frequencies[i]``; ``magnitude`` multiplies cosine and sine (1.0 except for YaRN
    and LongRoPE). For windows of more than ``short_context`` tokens some models have ``long_frequencies``,
    and others stretch theirs by the window's length and ``dynamic_factor``.
    """

    frequencies: tuple[float, ...]
    magnitude: float = 1.0
    long_frequencies: tuple[float, ...] | None = None
    short_context: int | None = None
    dynamic_factor: float | None = None

    @property
    def dim(self) -> int:
        """Rotated elements of each head: the first ``dim``; the rest pass unchanged."""
        return 2 * len(self.frequencies)

    def for_context(self, n_ctx: int) -> "RopeSpec":
        """The rotation for a window of ``n_ctx`` tokens: one set of frequencies."""
        if self.short_context is None:
            return self
        chosen = self.frequencies
        if n_ctx > self.short_context and self.dynamic_factor is not None:
            stretch = n_ctx / self.short_context
            chosen = rope.dynamic(chosen, factor=self.dynamic_factor, stretch=stretch)
        elif n_ctx > self.short_context and self.long_frequencies is not None:
            chosen = self.long_frequencies
        return RopeSpec(chosen, self.magnitude)


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """What may differ from layer to layer: the rotation (``None``: the layer is not told positions), and how
    far back a token sees (``None``: to the beginning).
    """

    rope: RopeSpec | None
    window: int | None = None


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """Grouped-query attention (Ainslie et al. 2023): query heads share keys and values in equal groups.

    ``scale`` multiplies q.k before the softmax, and ``softcap`` then bends the scores to stay below it
    (Gemma 2). ``qk_norm`` normalises q and k before the rotation: each head of them, or the whole row.
    ``bias`` is of q, k and v, ``output_bias`` of the projection behind. ``sinks`` gives each head a learned
    score that takes its share of the softmax and adds nothing (Xiao et al. 2023).
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    qk_norm: QkNorm | None = None
    bias: bool = False
    output_bias: bool = False
    softcap: float | None = None
    sinks: bool = False

    @property
    def q_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim


@dataclass(frozen=True, slots=True)
class ExpertsSpec:
    """A mixture of experts (Shazeer et al. 2017): each token passes through ``per_token`` of ``count`` MLPs.

    A router scores them; the outputs of the best are summed with the softmax of the scores as weights.
    ``normalized`` weights sum to 1 over the chosen ones, others over all. ``bias`` is the router's.
    """

    count: int
    per_token: int
    normalized: bool = True
    bias: bool = False


@dataclass(frozen=True, slots=True)
class MlpSpec:
    """The gated feed-forward layer (Shazeer 2020, GLU variants): down(activation(gate(x)) * up(x)).

    ``intermediate_size`` is that of each expert where there are ``experts``. All three matrices have a
    ``bias``, or none.
    """

    intermediate_size: int
    activation: Activation = "silu"
    bias: bool = False
    experts: ExpertsSpec | None = None


@dataclass(frozen=True, slots=True)
class NormSpec:
    """RMSNorm (Zhang and Sennrich 2019) in front of attention and MLP (``pre``) or behind (``post``)."""

    eps: float
    pre: bool = True
    post: bool = False

    @property
    def before(self) -> tuple[str, ...]:
        """What checkpoints call the norms in front of attention and MLP; empty where there are none.

        Llama calls the one in front of the MLP "post attention"; with post-norms that name is another's.
        """
        mlp_norm = "pre_feedforward_layernorm" if self.post else "post_attention_layernorm"
        return ("input_layernorm", mlp_norm) if self.pre else ()

    @property
    def behind(self) -> tuple[str, ...]:
        """What checkpoints call the norms behind attention and MLP; empty where there are none."""
        return ("post_attention_layernorm", "post_feedforward_layernorm") if self.post else ()


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A whole decoder. ``embedding_scale`` multiplies embeddings; ``tied_head`` reuses them as output.

    ``logit_scale`` multiplies the logits, and ``logit_softcap`` then bends them to stay below it.
    """

    family: str
    vocab_size: int
    hidden_size: int
    max_context: int
    attention: AttentionSpec
    mlp: MlpSpec
    norm: NormSpec
    layers: tuple[LayerSpec, ...]
    embedding_scale: float | None = None
    tied_head: bool = False
    logit_scale: float | None = None
    logit_softcap: float | None = None

    def __post_init__(self) -> None:
        """Refuse sizes that can't belong together: the file is wrong, and later arithmetic would be.

        Raises:
            FormatError: names the two values that contradict each other.
        """
        attention = self.attention
        if attention.num_heads % attention.num_kv_heads:
            raise FormatError(
                f"the model has {attention.num_heads} attention heads and {attention.num_kv_heads} key-value "
                "heads; the first must be a multiple of the second"
            )
        experts = self.mlp.experts
        if experts is not None and experts.per_token > experts.count:
            raise FormatError(
                f"the model sends each token to {experts.per_token} of {experts.count} experts; "
                "it can't be more than there are"
            )
        for layer in self.layers:
            if layer.rope is not None and layer.rope.dim > attention.head_dim:
                raise FormatError(
                    f"the model rotates {layer.rope.dim} dimensions of a head that has {attention.head_dim}; "
                    "it can't be more than the head has"
                )

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    def for_context(self, n_ctx: int) -> "ModelSpec":
        """The model in a window of ``n_ctx`` tokens: where the rotation depends on it, it is chosen."""
        known: dict[RopeSpec | None, RopeSpec | None] = {None: None}
        for each in {layer.rope for layer in self.layers} - {None}:
            known[each] = each.for_context(n_ctx) if each is not None else None
        return replace(self, layers=tuple(replace(layer, rope=known[layer.rope]) for layer in self.layers))
