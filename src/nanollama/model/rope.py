"""Rotary frequencies and their scalings: from a checkpoint's settings to the numbers in a RopeSpec.

A backend only ever sees frequencies; how a model stretches its context window is settled here. Each function
returns one frequency per rotated pair, in radians per position.
"""

import math
from collections.abc import Sequence


def frequencies(theta: float, dim: int) -> tuple[float, ...]:
    """The unscaled frequencies ``theta ** (-2i / dim)`` for i in 0 .. dim/2 - 1 (RoFormer, section 3.2.2)."""
    return tuple(theta ** (-2.0 * i / dim) for i in range(dim // 2))


def linear(base: Sequence[float], factor: float) -> tuple[float, ...]:
    """Position interpolation (Chen et al. 2023): every position counts as ``1 / factor`` of one."""
    return tuple(f / factor for f in base)


def divided(base: Sequence[float], factors: Sequence[float]) -> tuple[float, ...]:
    """Per-frequency divisors, as GGUF stores Llama 3 scaling in its ``rope_freqs.weight`` tensor."""
    return tuple(f / d for f, d in zip(base, factors, strict=True))


def yarn(
    base: Sequence[float],
    *,
    theta: float,
    factor: float,
    original_context: int,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    truncate: bool = True,
) -> tuple[float, ...]:
    """YaRN (Peng et al. 2023, section 3.2): keep fast frequencies, interpolate slow ones, ramp in between.

    A frequency that turns more than ``beta_fast`` times within ``original_context`` tokens stays as it is;
    one that turns fewer than ``beta_slow`` times is divided by ``factor``. With ``truncate`` the ramp between
    them begins and ends at whole pairs.
    """
    dim = 2 * len(base)

    def pair_turning(turns: float) -> float:
        return dim * math.log(original_context / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = pair_turning(beta_fast), pair_turning(beta_slow)
    if truncate:
        first, last = math.floor(first), math.ceil(last)
    low, high = max(first, 0), min(last, dim - 1)
    scaled = []
    for i, f in enumerate(base):
        ramp = min(max((i - low) / max(high - low, 0.001), 0.0), 1.0)
        scaled.append(f * (1.0 - ramp) + f / factor * ramp)
    return tuple(scaled)


def yarn_magnitude(factor: float, weight: float = 1.0) -> float:
    """YaRN's attention temperature as a factor on cosine and sine (equation 22): ``0.1 ln(factor) + 1``."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1.0 else 1.0


def llama3(
    base: Sequence[float],
    *,
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    original_context: int,
) -> tuple[float, ...]:
    """Llama 3.1's scaling: as YaRN's, but the ramp runs over turns within the original context, not pairs.

    A frequency that turns ``high_freq_factor`` times or more stays, one that turns ``low_freq_factor`` times
    or fewer is divided by ``factor`` (Meta's ``apply_scaling``).
    """
    scaled = []
    for f in base:
        turns = original_context * f / (2 * math.pi)
        ramp = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor)
        kept = min(max(ramp, 0.0), 1.0)
        scaled.append(f * kept + f / factor * (1.0 - kept))
    return tuple(scaled)


def dynamic(base: Sequence[float], *, factor: float, stretch: float) -> tuple[float, ...]:
    """Dynamic NTK scaling of a window ``stretch`` times the trained one (bloc97 and emozilla, 2023).

    It multiplies the rotary base by ``growth ** (dim / (dim - 2))``: the first of the n frequencies stays,
    the last is divided by ``growth``.
    """
    growth = factor * stretch - (factor - 1.0)
    return tuple(f * growth ** (-i / (len(base) - 1)) for i, f in enumerate(base))


def longrope_magnitude(factor: float, original_context: int) -> float:
    """LongRoPE's factor on cosine and sine (Ding et al. 2024): ``sqrt(1 + ln(factor) / ln(context))``."""
    return math.sqrt(1.0 + math.log(factor) / math.log(original_context)) if factor > 1.0 else 1.0
