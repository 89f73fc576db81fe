"""One step's integers: a ModelInput in, its ids, places and block tables on the device out, in one copy.

Decoding sequences form one group, each prompt a group of its own; the rows of a step lie group by group. All
sizes are known before anything is on the device, so nothing has to be read back from it. A step may be padded
to rounder sizes: rows too many write to a scratch block behind the cache, and nobody reads their results.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nanollama.backends.ops import ModelInput, SequenceInput
from nanollama.model.spec import AttentionSpec, RopeSpec

MIN_BLOCKS = 8
"""Steps are padded to no fewer blocks of the cache."""

Windows = tuple[int | None, ...]
Rotation = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class GroupShape:
    """``count`` sequences with ``length`` new tokens each. ``fresh`` ones have nothing in the cache yet.

    ``blocks`` of the cache are gathered for each sequence, a number for each window of the model.
    """

    count: int
    length: int
    fresh: bool
    blocks: tuple[int, ...]

    @property
    def rows(self) -> int:
        return self.count * self.length


@dataclass(frozen=True, slots=True)
class StepShape:
    """The sizes of a step: steps of one shape differ in their integers alone."""

    groups: tuple[GroupShape, ...]
    logit_rows: int

    @property
    def rows(self) -> int:
        return sum(group.rows for group in self.groups)

    def lengths(self) -> list[int]:
        """The lengths of the parts of a step's integers, in their order."""
        tables = [
            n for group in self.groups for blocks in group.blocks for n in (group.count * blocks, group.count)
        ]
        return [self.rows, self.rows, self.rows, self.logit_rows, *tables]


@dataclass(frozen=True, slots=True)
class View:
    """What the sequences of a group see through one window.

    ``tables`` ``[count * blocks]`` are the blocks to gather, ``mask`` is added to scores
    ``[count, kv heads, length * heads of a kv head, blocks * block tokens]``: 0, or minus infinity.
    """

    tables: Tensor
    mask: Tensor


@dataclass(frozen=True, slots=True)
class Group:
    """A part of the step that attends together: the rows from ``first`` on."""

    shape: GroupShape
    first: int
    views: Mapping[int | None, View]


class TorchBatch:
    """The step on the device. ``rotations`` are cosine and sine of each rotation at the step's positions."""

    def __init__(
        self,
        shape: StepShape,
        data: Tensor,
        rotations: Mapping[int, Rotation],
        layout: "Layout",
        mask_dtype: torch.dtype,
    ) -> None:
        parts = iter(data.split(shape.lengths()))
        self.token_ids, positions, self.slots, self.rows = (next(parts) for _ in range(4))
        self.rotations = {key: (cos[positions], sin[positions]) for key, (cos, sin) in rotations.items()}
        groups, first = [], 0
        for group in shape.groups:
            where = positions[first : first + group.rows].view(group.count, group.length)
            views = {}
            for window, blocks in zip(layout.windows, group.blocks, strict=True):
                table, bases = next(parts), next(parts)
                if blocks:
                    keys = bases[:, None] + torch.arange(blocks * layout.block_tokens, device=data.device)
                    views[window] = View(table, _mask(where, keys, window, layout.attention, mask_dtype))
            groups.append(Group(group, first, views))
            first += group.rows
        self.groups = tuple(groups)


def sees_itself_alone(group: GroupShape, window: int | None, attention: AttentionSpec) -> bool:
    """Whether a group needs nothing from the cache and no mask but the causal one."""
    plain = not attention.sinks and attention.softcap is None
    return group.fresh and plain and (window is None or group.length <= window)


def _mask(
    queries: Tensor, keys: Tensor, window: int | None, attention: AttentionSpec, dtype: torch.dtype
) -> Tensor:
    """The mask of a View for queries at positions ``[count, length]`` and keys at ``[count, m]``."""
    distance = queries[:, :, None] - keys[:, None, :]
    hidden = distance < 0 if window is None else (distance < 0) | (distance >= window)
    mask = torch.zeros(hidden.shape, dtype=dtype, device=keys.device).masked_fill(hidden, float("-inf"))
    shared = attention.num_heads // attention.num_kv_heads
    return mask[:, None, :, None].expand(-1, -1, -1, shared, -1).flatten(2, 3)


def rotation_table(rope: RopeSpec, n_positions: int, device: torch.device) -> Rotation:
    """Cosine and sine ``[positions, 1, dim / 2]`` of a rotation."""
    frequencies = torch.tensor(rope.frequencies, device=device)
    angles = torch.outer(torch.arange(n_positions, device=device).float(), frequencies)[:, None]
    return angles.cos() * rope.magnitude, angles.sin() * rope.magnitude


Member = tuple[SequenceInput, int]
"""A sequence, and the row of its first token in the ModelInput."""


def grouped(batch: ModelInput) -> list[list[Member]]:
    """The sequences of a step in groups: all that decode together, and each prompt alone."""
    members, first = [], 0
    for sequence in batch.sequences:
        members.append((sequence, first))
        first += sequence.n_new
    decoding = [member for member in members if member[0].n_new == 1]
    prompts = [[member] for member in members if member[0].n_new > 1]
    return [decoding, *prompts] if decoding else prompts


@dataclass(frozen=True, slots=True)
class Layout:
    """How the steps of a model are laid out. Block ``num_blocks``, one behind the last, is for padding."""

    windows: Windows
    attention: AttentionSpec
    block_tokens: int
    num_blocks: int

    def shape_of(self, groups: Sequence[Sequence[Member]], logit_rows: int) -> StepShape:
        """The sizes of a step as they are, nothing padded."""
        shapes = []
        for members in groups:
            first = members[0][0]
            fresh = first.n_new > 1 and not first.n_cached
            bare = GroupShape(len(members), first.n_new, fresh, ())
            blocks = [
                max(len(s.block_table) - self._first_block(s, window) for s, _ in members)
                for window in self.windows
            ]
            shapes.append(self._with_blocks(bare, blocks))
        return StepShape(tuple(shapes), logit_rows)

    def rounded(self, shape: StepShape) -> StepShape:
        """A shape of one group padded to rounder sizes, of which there are few."""
        (group,) = shape.groups
        length = group.length if group.length == 1 else _power(group.length, 16)
        bare = GroupShape(_power(group.count, 1), length, group.fresh, ())
        most = [
            self.num_blocks if window is None else -(-(window + length - 1) // self.block_tokens) + 1
            for window in self.windows
        ]
        blocks = [
            min(_power(n, MIN_BLOCKS), self.num_blocks, m) for n, m in zip(group.blocks, most, strict=True)
        ]
        return StepShape((self._with_blocks(bare, blocks),), _rounded_rows(shape.logit_rows, bare))

    def integers(
        self, batch: ModelInput, groups: Sequence[Sequence[Member]], shape: StepShape
    ) -> NDArray[np.int64]:
        """The integers of a step, padded to ``shape``, in the order of its ``lengths``."""
        parts: list[NDArray[np.int64]] = []
        tables: list[NDArray[np.int64]] = []
        places = np.zeros(len(batch.token_ids), np.int64)  # where each row of the batch lies in the step
        first = 0
        for members, group in zip(groups, shape.groups, strict=True):
            tokens, positions = np.zeros((2, group.count, group.length), np.int64)
            slots = np.full((group.count, group.length), self.num_blocks * self.block_tokens, np.int64)
            for row, (s, start) in enumerate(members):
                n, where = s.n_new, np.arange(s.n_cached, s.n_cached + s.n_new)
                tokens[row, :n] = batch.token_ids[start : start + n]
                positions[row] = where[-1]  # padding stands at the end, so that there is something it can see
                positions[row, :n] = where
                block = np.asarray(s.block_table)[where // self.block_tokens]
                slots[row, :n] = block * self.block_tokens + where % self.block_tokens
                places[start : start + n] = first + row * group.length + np.arange(n)
            parts += [tokens.ravel(), positions.ravel(), slots.ravel()]
            for window, blocks in zip(self.windows, group.blocks, strict=True):
                tables += self._tables(members, window, group.count, blocks)
            first += group.rows
        rows = np.zeros(shape.logit_rows, np.int64)
        rows[: len(batch.logit_rows)] = places[list(batch.logit_rows)]
        return np.concatenate([*parts[0::3], *parts[1::3], *parts[2::3], rows, *tables])

    def _tables(
        self, members: Sequence[Member], window: int | None, count: int, blocks: int
    ) -> list[NDArray[np.int64]]:
        """The blocks that each of ``count`` sequences sees, and the position where the first one begins."""
        table, bases = np.full((count, blocks), self.num_blocks, np.int64), np.zeros(count, np.int64)
        for row, (s, _) in enumerate(members):
            begin = self._first_block(s, window)
            seen = s.block_table[begin : begin + blocks]
            table[row, : len(seen)] = seen
            bases[row] = begin * self.block_tokens
        return [table.ravel(), bases]

    def _with_blocks(self, bare: GroupShape, blocks: Sequence[int]) -> GroupShape:
        """The group with the blocks it gathers: none where it needs nothing from the cache."""
        needed = tuple(
            0 if sees_itself_alone(bare, window, self.attention) else n
            for window, n in zip(self.windows, blocks, strict=True)
        )
        return replace(bare, blocks=needed)

    def _first_block(self, sequence: SequenceInput, window: int | None) -> int:
        """The first block that a sequence's oldest new token can see."""
        return 0 if window is None else max(0, sequence.n_cached + 1 - window) // self.block_tokens


def _power(n: int, least: int) -> int:
    """The next power of two."""
    return max(least, 1 << (n - 1).bit_length())


def _rounded_rows(logit_rows: int, group: GroupShape) -> int:
    """Logits are wanted of every row, of the last one, or of none."""
    return logit_rows if logit_rows <= 1 and group.length > 1 else group.rows


def on_device(data: NDArray[np.int64], device: torch.device) -> Tensor:
    """The integers on the device, by way of pinned memory, so that nobody waits for the copy."""
    if device.type != "cuda":
        return torch.from_numpy(data).to(device)
    pinned = torch.empty(len(data), dtype=torch.int64, pin_memory=True)
    pinned.numpy()[:] = data
    return pinned.to(device, non_blocking=True)
