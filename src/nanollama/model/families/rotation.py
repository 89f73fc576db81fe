"""Which rotation a checkpoint asks for: GGUF keys or a ``config.json`` in, a RopeSpec out.

Both configuration forms are read: ``rope_theta`` with ``rope_scaling``, and the ``rope_parameters`` of
transformers 5, for all layers at once or for each kind of layer. The scalings themselves are in ``rope.py``.
"""

import math
from collections.abc import Sequence

from nanollama.errors import FormatError, UnsupportedError
from nanollama.model import rope
from nanollama.model.families.config import Config
from nanollama.model.families.metadata import Metadata
from nanollama.model.families.shape import MAX_CONTEXT, Shape
from nanollama.model.spec import RopeSpec

THETA = 10000.0
KINDS = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")
OLD_NAMES = {"su": "longrope", "mrope": "default"}
"""What configurations called a scaling before it had its name; ``mrope`` on text is the plain rotation."""


def rope_of_config(
    config: Config, shape: Shape, *, layers: str | None = None, theta: float = THETA
) -> RopeSpec:
    """The rotation a ``config.json`` describes, of the layers of kind ``layers`` where it tells them apart.

    ``theta`` is the family's base, used where the file states none.

    Raises:
        FormatError: a value is missing or out of range.
        UnsupportedError: the scaling has a name that is not known.
    """
    kind, scaling, theta = scaling_of(config, layers=layers, theta=theta)
    share = scaling.number("partial_rotary_factor", config.number("partial_rotary_factor", 1.0))
    dim = int(shape.head_dim * share)
    if share > 1 or dim < 2 or dim % 2:
        raise FormatError(
            f"partial_rotary_factor in config.json is {share:g}, {dim} of a head's {shape.head_dim} "
            "dimensions; expected an even number of them"
        )
    try:
        return _scaled(kind, scaling, config, shape, theta, dim)
    except (ArithmeticError, ValueError) as error:
        raise FormatError(f"the rope scaling in config.json gives no frequencies: {error}") from error


def scaling_of(
    config: Config, *, layers: str | None = None, theta: float = THETA
) -> tuple[str, Config, float]:
    """The kind of scaling, the object with its numbers, and the base; as :func:`rope_of_config`."""
    scaling = config.inside("rope_parameters") or config.inside("rope_scaling") or config.part({})
    if layers is not None:
        scaling = scaling.inside(layers) or scaling
    theta = scaling.number("rope_theta", config.number("rope_theta", theta))
    kind = scaling.text("rope_type", scaling.text("type", "default"))
    kind = OLD_NAMES.get(kind, kind)
    if kind not in KINDS:
        raise UnsupportedError(
            f"the rope scaling {kind!r} in config.json is not supported; supported are {', '.join(KINDS)}"
        )
    return kind, scaling, theta


def _scaled(kind: str, scaling: Config, config: Config, shape: Shape, theta: float, dim: int) -> RopeSpec:
    base = rope.frequencies(theta, dim)
    if kind == "default":
        return RopeSpec(base)
    stated = config.size("original_max_position_embeddings", shape.max_context, maximum=MAX_CONTEXT)
    original = scaling.size("original_max_position_embeddings", stated, maximum=MAX_CONTEXT)
    if kind == "longrope":
        factor = scaling.number("factor", shape.max_context / original)
        return long_rope(
            base,
            short=scaling.numbers("short_factor", len(base)),
            long=scaling.numbers("long_factor", len(base)),
            original_context=original,
            magnitude=scaling.optional("attention_factor") or rope.longrope_magnitude(factor, original),
        )
    factor = scaling.number("factor", shape.max_context / original if kind == "yarn" else None)
    if kind == "linear":
        return RopeSpec(rope.linear(base, factor))
    if kind == "dynamic":
        rope.dynamic(base, factor=factor, stretch=factor)  # a head of one pair has no such scaling
        trained = config.size("max_position_embeddings", maximum=MAX_CONTEXT)
        return RopeSpec(base, short_context=trained, dynamic_factor=factor)
    if kind == "llama3":
        return RopeSpec(
            rope.llama3(
                base,
                factor=factor,
                low_freq_factor=scaling.number("low_freq_factor"),
                high_freq_factor=scaling.number("high_freq_factor"),
                original_context=original,
            )
        )
    stretched = rope.yarn(
        base,
        theta=theta,
        factor=factor,
        original_context=original,
        beta_fast=scaling.number("beta_fast", 32.0),
        beta_slow=scaling.number("beta_slow", 1.0),
        truncate=scaling.flag("truncate", True),
    )
    return RopeSpec(stretched, scaling.optional("attention_factor") or _yarn_magnitude(scaling, factor))


def _yarn_magnitude(scaling: Config, factor: float) -> float:
    """YaRN's temperature, or the quotient of two where the file weighs them (DeepSeek's extension)."""
    above, below = scaling.optional("mscale"), scaling.optional("mscale_all_dim")
    if above is None or below is None:
        return rope.yarn_magnitude(factor)
    return rope.yarn_magnitude(factor, above) / rope.yarn_magnitude(factor, below)


def long_rope(
    base: Sequence[float],
    *,
    short: Sequence[float],
    long: Sequence[float],
    original_context: int,
    magnitude: float,
) -> RopeSpec:
    """LongRoPE: one set of divisors up to the original context, another for windows longer than it."""
    return RopeSpec(
        rope.divided(base, short),
        magnitude,
        long_frequencies=rope.divided(base, long),
        short_context=original_context,
    )


def rope_of_gguf(meta: Metadata, head_dim: int, *, theta: float = THETA, truncate: bool = True) -> RopeSpec:
    """The rotation a GGUF file describes: base, linear or YaRN scaling, Llama 3's and LongRoPE's divisors.

    Raises:
        FormatError: a value is missing or out of range.
        UnsupportedError: the scaling has a name that is not known.
    """
    dim = meta.size("rope.dimension_count", head_dim)
    if dim % 2:
        raise FormatError(f"{meta.architecture}.rope.dimension_count is {dim}; expected an even number")
    theta = meta.number("rope.freq_base", theta)
    base = rope.frequencies(theta, dim)
    if (divisors := _divisors(meta, "rope_freqs.weight", len(base))) is not None:
        base = rope.divided(base, divisors)
    if (short := _divisors(meta, "rope_factors_short.weight", len(base))) is not None:
        return _gguf_long_rope(meta, base, short)
    kind = meta.text("rope.scaling.type", "none")
    # Files from before the key `rope.scaling.type` say linear scaling with `rope.scale_linear` alone.
    factor = meta.number("rope.scaling.factor", meta.number("rope.scale_linear", 1.0))
    if kind == "linear" or (kind == "none" and f"{meta.architecture}.rope.scale_linear" in meta.values):
        return RopeSpec(rope.linear(base, factor))
    if kind == "yarn":
        stretched = rope.yarn(
            base,
            theta=theta,
            factor=factor,
            original_context=meta.size("rope.scaling.original_context_length", maximum=MAX_CONTEXT),
            beta_fast=meta.number("rope.scaling.yarn_beta_fast", 32.0),
            beta_slow=meta.number("rope.scaling.yarn_beta_slow", 1.0),
            truncate=truncate,
        )
        extra = meta.number("rope.scaling.yarn_attn_factor", meta.number("rope.scaling.attn_factor", 1.0))
        return RopeSpec(stretched, extra * rope.yarn_magnitude(factor))
    if kind != "none":
        raise UnsupportedError(
            f"{meta.architecture}.rope.scaling.type is {kind!r}; supported are none, linear and yarn, and "
            "longrope with its tensors rope_factors_short.weight and rope_factors_long.weight"
        )
    return RopeSpec(base)


def _gguf_long_rope(meta: Metadata, base: Sequence[float], short: Sequence[float]) -> RopeSpec:
    long = _divisors(meta, "rope_factors_long.weight", len(base))
    if long is None:
        raise FormatError("the tensor rope_factors_long.weight is missing; the file has the short ones alone")
    return long_rope(
        base,
        short=short,
        long=long,
        original_context=meta.size("rope.scaling.original_context_length", maximum=MAX_CONTEXT),
        magnitude=meta.number("rope.scaling.attn_factor", 1.0),
    )


def _divisors(meta: Metadata, name: str, count: int) -> tuple[float, ...] | None:
    divisors = meta.vector(name)
    if divisors is not None and (len(divisors) != count or not all(0 < d < math.inf for d in divisors)):
        raise FormatError(f"the tensor {name} has {len(divisors)} values; expected {count} positive divisors")
    return divisors
