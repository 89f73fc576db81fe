"""The sizes that every decoder states: GGUF metadata or a ``config.json`` in, one Shape out.

The parts of a ModelSpec that follow from them alone are built here, so that a family file says only what is
its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from nanollama.errors import FormatError
from nanollama.model.families.config import Config
from nanollama.model.families.metadata import Metadata
from nanollama.model.spec import AttentionSpec, LayerSpec, MlpSpec, ModelSpec, NormSpec

MAX_LAYERS = 4096
MAX_CONTEXT = 1 << 31
MAX_HEAD = 1 << 16
"""Each pair of a head's elements has a frequency, computed before any tensor's size could contradict."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a decoder, under the names that Hugging Face configurations give them."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_context: int
    eps: float
    tied_head: bool

    @classmethod
    def of_gguf(cls, meta: Metadata, *, intermediate: str = "feed_forward_length") -> "Shape":
        """The sizes in a GGUF file; raises FormatError for one that is missing or out of range."""
        hidden_size = meta.size("embedding_length")
        num_heads = meta.size("attention.head_count")
        stated = meta.size("attention.key_length", 0, maximum=MAX_HEAD)
        return cls(
            vocab_size=meta.vocab_size,
            hidden_size=hidden_size,
            intermediate_size=meta.size(intermediate),
            num_layers=meta.size("block_count", maximum=MAX_LAYERS),
            num_heads=num_heads,
            num_kv_heads=meta.size("attention.head_count_kv", num_heads),
            head_dim=stated or head_dim_of(hidden_size, num_heads, "attention.key_length"),
            max_context=meta.size("context_length", maximum=MAX_CONTEXT),
            eps=meta.number("attention.layer_norm_rms_epsilon"),
            tied_head=not meta.has_tensor("output.weight"),
        )

    @classmethod
    def of_config(
        cls, config: Config, *, activation: str = "silu", intermediate: str = "intermediate_size"
    ) -> "Shape":
        """The sizes in a ``config.json``; raises FormatError like :meth:`of_gguf`."""
        for key in ("hidden_act", "hidden_activation"):
            config.expect(key, activation)
        hidden_size = config.size("hidden_size")
        num_heads = config.size("num_attention_heads")
        stated = config.size("head_dim", 0, maximum=MAX_HEAD)
        return cls(
            vocab_size=config.size("vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=config.size(intermediate),
            num_layers=config.size("num_hidden_layers", maximum=MAX_LAYERS),
            num_heads=num_heads,
            num_kv_heads=config.size("num_key_value_heads", num_heads),
            head_dim=stated or head_dim_of(hidden_size, num_heads, "head_dim"),
            max_context=_max_context(config),
            eps=config.number("rms_norm_eps", 1e-6),
            # A checkpoint of a tied model has no lm_head, or one that transformers ignores.
            tied_head=config.flag("tie_word_embeddings", not config.has_tensor("lm_head.weight")),
        )

    def attention(self, **more: Any) -> AttentionSpec:
        """Grouped heads, scores scaled by the root of the head's width; ``more`` are fields that differ."""
        plain = AttentionSpec(self.num_heads, self.num_kv_heads, self.head_dim, scale=self.head_dim**-0.5)
        return replace(plain, **more)

    def decoder(self, family: str, layers: LayerSpec | Sequence[LayerSpec], **more: Any) -> ModelSpec:
        """The decoder of Llama's plan; ``more`` are the fields of ModelSpec that differ."""
        each = (layers,) * self.num_layers if isinstance(layers, LayerSpec) else tuple(layers)
        parts: dict[str, Any] = {
            "attention": self.attention(),
            "mlp": MlpSpec(self.intermediate_size),
            "norm": NormSpec(self.eps),
        }
        return ModelSpec(
            family=family,
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            max_context=self.max_context,
            layers=each,
            tied_head=self.tied_head,
            **(parts | more),
        )


def _max_context(config: Config) -> int:
    """The window a configuration allows: the trained one, and dynamic rope scaling stretches it."""
    trained = config.size("max_position_embeddings", maximum=MAX_CONTEXT)
    scaling = config.inside("rope_parameters") or config.inside("rope_scaling")
    if scaling is None or "dynamic" not in (scaling.values.get("rope_type"), scaling.values.get("type")):
        return trained
    return min(int(trained * scaling.number("factor")), MAX_CONTEXT)


def head_dim_of(hidden_size: int, num_heads: int, key: str) -> int:
    """The width of a head where the file does not state it: an equal share of the hidden size.

    Raises:
        FormatError: the heads can't share it equally.
    """
    if hidden_size % num_heads:
        raise FormatError(
            f"the embedding length {hidden_size} is not a multiple of the {num_heads} attention heads, "
            f"and the file states no {key}"
        )
    return hidden_size // num_heads
