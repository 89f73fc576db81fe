"""What a model is, as data: a frozen ModelSpec, built by a family and read by recipe and backends.

Everything that distinguishes one supported architecture from another is a field here; no other module tests
an architecture's name. Sizes are element counts, frequencies are radians per position.
"""

from dataclasses import dataclass
from typing import Literal

from nanollama.errors import FormatError

Activation = Literal["silu", "gelu_tanh"]


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary position embedding (Su et al. 2021, RoFormer) with any frequency scaling already folded in.

    Pair i of a head, that is elements (i, i + dim/2) in the half-split order of Hugging Face checkpoints, is
    rotated by ``position * frequencies[i]``; ``magnitude`` multiplies cosine and sine (1.0 except for YaRN).
    """

    frequencies: tuple[float, ...]
    magnitude: float = 1.0

    @property
    def dim(self) -> int:
        """Rotated elements of each head: the first ``dim``; the rest pass unchanged."""
        return 2 * len(self.frequencies)


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """What may differ from layer to layer: the rotation, and how far back a token sees (``None``: all)."""

    rope: RopeSpec
    window: int | None = None


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """Grouped-query attention (Ainslie et al. 2023): query heads share keys and values in equal groups.

    ``scale`` multiplies q.k before the softmax. ``qk_norm`` normalises each head of q and k before the
    rotation.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    qk_norm: bool = False
    bias: bool = False

    @property
    def q_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim


@dataclass(frozen=True, slots=True)
class MlpSpec:
    """The gated feed-forward layer (Shazeer 2020, GLU variants): down(activation(gate(x)) * up(x))."""

    intermediate_size: int
    activation: Activation = "silu"


@dataclass(frozen=True, slots=True)
class NormSpec:
    """RMSNorm (Zhang and Sennrich 2019). ``post`` adds one after attention and MLP, before each sum."""

    eps: float
    post: bool = False


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A whole decoder. ``embedding_scale`` multiplies embeddings; ``tied_head`` reuses them as output."""

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
        for layer in self.layers:
            if layer.rope.dim > attention.head_dim:
                raise FormatError(
                    f"the model rotates {layer.rope.dim} dimensions of a head that has {attention.head_dim}; "
                    "it can't be more than the head has"
                )

    @property
    def num_layers(self) -> int:
        return len(self.layers)
