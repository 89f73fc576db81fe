"""The ops protocol: the dozen operations a decoder is made of, and the batch that one step runs.

The recipe in ``model/transformer.py`` is written once against this protocol. A backend may compute at each
call (torch) or record the call and replay the record later (a tape). Tensors are opaque handles to the
recipe.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from nanollama.model.spec import Activation, AttentionSpec, ExpertsSpec, LayerSpec, ModelSpec, RopeSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from nanollama.sampling.edits import Edits

Tensor = TypeVar("Tensor")
Weight = TypeVar("Weight", contravariant=True)


@dataclass(frozen=True, slots=True)
class SequenceInput:
    """One sequence's part of a step: ``n_new`` tokens that follow ``n_cached`` tokens already in the cache.

    ``block_table`` lists the cache blocks of the sequence in order; it covers ``n_cached + n_new`` tokens.
    """

    n_new: int
    n_cached: int
    block_table: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModelInput:
    """One step: the new tokens of its sequences, one after the other, and the rows whose logits are wanted.

    ``logit_rows`` index ``token_ids``, ascending. ``copies`` are whole blocks of the cache, source and
    destination, to be copied before anything is written. Each destination occurs once and is the source of no
    later copy: one after the other or all at once is the same.
    """

    token_ids: tuple[int, ...]
    sequences: tuple[SequenceInput, ...]
    logit_rows: tuple[int, ...]
    copies: tuple[tuple[int, int], ...] = ()


class Backend(Protocol):
    """A loaded model that can run steps. One step at a time; block ids are ``0 .. num_blocks - 1``.

    A step holds at most ``max_rows`` tokens of at most ``max_sequences`` sequences. Prompts go fastest when
    their steps have ``step_rows`` tokens.
    """

    spec: ModelSpec
    block_tokens: int
    num_blocks: int
    max_rows: int
    step_rows: int
    max_sequences: int

    @property
    def read_bytes(self) -> int:
        """Bytes of weights that decoding a token reads."""
        ...

    def step(self, batch: ModelInput) -> "NDArray[np.float32]":
        """Run one step, filling the cache; the logits ``[logit rows, vocab]``, valid until the next step."""
        ...

    def best(
        self, batch: ModelInput, k: int = 1, edits: "Edits | None" = None
    ) -> "tuple[NDArray[np.integer], NDArray[np.float32]]":
        """Run one step as :meth:`step` does; of each logit row the ids of the ``k`` highest logits and the
        logits ``[logit rows, k]``, highest first, equal ones by id. Both are valid until the next step.

        ``edits`` are made before, in all rows. Where a row has a NaN, its first logit is NaN. ``k`` is at
        most the size of the vocabulary. The logits need not leave the device.
        """
        ...

    def close(self) -> None:
        """Release weights, cache and threads."""
        ...


class Ops(Protocol[Tensor, Weight]):
    """What a backend offers the recipe. ``n`` is the number of tokens in the step.

    ``Tensor`` is a handle to activations, ``Weight`` to a parameter in whatever form the backend packed it.
    """

    def embed(self, table: Weight, scale: float | None) -> Tensor:
        """The embeddings ``[n, hidden]`` of the step's tokens, times ``scale`` if given."""
        ...

    def rms_norm(self, x: Tensor, weight: Weight, eps: float) -> Tensor:
        """RMSNorm in float32 over groups as long as ``weight``: the whole row, or each head of it."""
        ...

    def linear(self, x: Tensor, weight: Weight) -> Sequence[Tensor]:
        """``x @ w.T + b`` for each matrix merged into ``weight``, one result each."""
        ...

    def rope(self, x: Tensor, rope: RopeSpec, head_dim: int) -> Tensor:
        """Rotate each head of ``x`` by its token's position."""
        ...

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        sinks: Weight | None,
        index: int,
        layer: LayerSpec,
        attention: AttentionSpec,
    ) -> Tensor:
        """Store k and v in layer ``index`` of the cache, then attend causally: ``[n, q_size]``.

        ``sinks`` are one score for each query head, as ``attention.sinks`` says.
        """
        ...

    def gated(self, gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
        """``activation(gate) * up``; ``clamped_swiglu`` is gpt-oss's way of it."""
        ...

    def experts(
        self,
        x: Tensor,
        scores: Tensor,
        gate_up: Weight,
        down: Weight,
        activation: Activation,
        experts: ExpertsSpec,
    ) -> Tensor:
        """The sum of the gated MLPs of each token's best experts, weighed by ``scores`` ``[n, count]``."""
        ...

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """The residual sum."""
        ...

    def logit_rows(self, x: Tensor) -> Tensor:
        """The rows of ``x`` whose logits the step asks for."""
        ...

    def softcap(self, x: Tensor, cap: float) -> Tensor:
        """``cap * tanh(x / cap)``."""
        ...
