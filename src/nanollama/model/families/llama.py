"""The Llama family: Llama 2 and 3, TinyLlama, SmolLM2, Mistral. GGUF metadata in, ModelSpec out."""

from nanollama.errors import FormatError, UnsupportedError
from nanollama.model import rope
from nanollama.model.families.metadata import Metadata
from nanollama.model.spec import AttentionSpec, LayerSpec, MlpSpec, ModelSpec, NormSpec, RopeSpec


def from_gguf(meta: Metadata) -> ModelSpec:
    """Read a ``general.architecture = llama`` file.

    Raises:
        FormatError: a key is missing or out of range.
        UnsupportedError: the file uses a variant of the family that is not supported.
    """
    if meta.values.get("llama.expert_count"):
        raise UnsupportedError(
            "this model is a mixture of experts (llama.expert_count is set); "
            "only dense Llama models are supported"
        )
    hidden_size = meta.size("embedding_length")
    num_heads = meta.size("attention.head_count")
    head_dim = meta.size("attention.key_length", 0) or head_dim_of(hidden_size, num_heads)
    window = meta.size("attention.sliding_window", 0, minimum=0) or None
    layer = LayerSpec(rope=rope_spec(meta, head_dim), window=window)
    return ModelSpec(
        family="llama",
        vocab_size=meta.vocab_size,
        hidden_size=hidden_size,
        max_context=meta.size("context_length", maximum=1 << 31),
        attention=AttentionSpec(
            num_heads=num_heads,
            num_kv_heads=meta.size("attention.head_count_kv", num_heads),
            head_dim=head_dim,
            scale=head_dim**-0.5,
            bias=meta.has_tensor("blk.0.attn_q.bias"),
        ),
        mlp=MlpSpec(meta.size("feed_forward_length")),
        norm=NormSpec(eps=meta.number("attention.layer_norm_rms_epsilon")),
        layers=(layer,) * meta.size("block_count", maximum=4096),
        tied_head=not meta.has_tensor("output.weight"),
    )


def head_dim_of(hidden_size: int, num_heads: int) -> int:
    """The width of a head where the file does not state it: an equal share of the hidden size.

    Raises:
        FormatError: the heads can't share it equally.
    """
    if hidden_size % num_heads:
        raise FormatError(
            f"the embedding length {hidden_size} is not a multiple of the {num_heads} attention heads, "
            "and the file states no attention.key_length"
        )
    return hidden_size // num_heads


def rope_spec(meta: Metadata, head_dim: int) -> RopeSpec:
    """The rotation a GGUF file describes: base, linear or YaRN scaling, Llama 3's divisors."""
    dim = meta.size("rope.dimension_count", head_dim)
    if dim % 2:
        raise FormatError(f"{meta.architecture}.rope.dimension_count is {dim}; expected an even number")
    theta = meta.number("rope.freq_base", 10000.0)
    base = rope.frequencies(theta, dim)
    divisors = meta.vector("rope_freqs.weight")
    if divisors is not None:
        if len(divisors) != len(base) or not all(d > 0 for d in divisors):
            raise FormatError(
                f"the tensor rope_freqs.weight has {len(divisors)} values; "
                f"expected {len(base)} positive divisors"
            )
        base = rope.divided(base, divisors)
    kind = meta.text("rope.scaling.type", "none")
    # Files from before the key `rope.scaling.type` say linear scaling with `rope.scale_linear` alone.
    factor = meta.number("rope.scaling.factor", meta.number("rope.scale_linear", 1.0))
    if kind == "linear" or (kind == "none" and "llama.rope.scale_linear" in meta.values):
        return RopeSpec(rope.linear(base, factor))
    if kind == "yarn":
        original = meta.size("rope.scaling.original_context_length", maximum=1 << 31)
        stretched = rope.yarn(base, theta=theta, factor=factor, original_context=original)
        return RopeSpec(stretched, magnitude=rope.yarn_magnitude(factor))
    if kind != "none":
        raise UnsupportedError(
            f"{meta.architecture}.rope.scaling.type is {kind!r}; supported are none, linear and yarn"
        )
    return RopeSpec(base)
