"""The Gemma 3 text family: GGUF metadata in, ModelSpec out.

q and k are normed, norms stand around each block, and layers are local or global.

Source: Gemma 3 technical report (2025). Five layers with a sliding window and a rotary base of 10,000 are
followed by one that sees everything, with the base (and scaling) the file states. GGUF stores norm weights
with Gemma's "+ 1" already added, so that the norm is plain RMSNorm.
"""

from nanollama.model import rope
from nanollama.model.families.llama import rope_spec
from nanollama.model.families.metadata import Metadata
from nanollama.model.spec import AttentionSpec, LayerSpec, MlpSpec, ModelSpec, NormSpec, RopeSpec

GLOBAL_EVERY = 6
LOCAL_ROPE_BASE = 10000.0
LAYERS_OF_27B = 62


def from_gguf(meta: Metadata) -> ModelSpec:
    """Read a ``general.architecture = gemma3`` file.

    Raises:
        FormatError: a key is missing or out of range.
        UnsupportedError: the file asks for a rope scaling that is not supported.
    """
    hidden_size = meta.size("embedding_length")
    num_heads = meta.size("attention.head_count")
    num_layers = meta.size("block_count", maximum=4096)
    head_dim = meta.size("attention.key_length", 256)
    local_base = meta.number("rope.freq_base_swa", LOCAL_ROPE_BASE)
    local_layer = LayerSpec(
        rope=RopeSpec(rope.frequencies(local_base, head_dim)), window=meta.size("attention.sliding_window")
    )
    global_layer = LayerSpec(rope=rope_spec(meta, head_dim))
    # The 27B model alone scales scores by hidden_size / num_heads; GGUF has no key for it.
    scaled_by = hidden_size // num_heads if num_layers == LAYERS_OF_27B else head_dim
    return ModelSpec(
        family="gemma3",
        vocab_size=meta.vocab_size,
        hidden_size=hidden_size,
        max_context=meta.size("context_length", maximum=1 << 31),
        attention=AttentionSpec(
            num_heads=num_heads,
            num_kv_heads=meta.size("attention.head_count_kv", num_heads),
            head_dim=head_dim,
            scale=scaled_by**-0.5,
            qk_norm=True,
        ),
        mlp=MlpSpec(meta.size("feed_forward_length"), activation="gelu_tanh"),
        norm=NormSpec(eps=meta.number("attention.layer_norm_rms_epsilon"), post=True),
        layers=tuple(global_layer if (i + 1) % GLOBAL_EVERY == 0 else local_layer for i in range(num_layers)),
        embedding_scale=hidden_size**0.5,
        tied_head=not meta.has_tensor("output.weight"),
    )
