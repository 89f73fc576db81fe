"""Attention over the paged cache, of both types of number, against float64, and equal to the bit however the
work is cut."""

import ctypes
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from nanollama.backends.native.library import (
    Attention,
    AttentionItem,
    AttentionMerge,
    Cache,
    Kernels,
)

SPAN = 256
TYPES = ("float16", "float32")


def cache_of(keys: NDArray[np.floating], values: NDArray[np.floating], block_size: int, dim: int) -> Cache:
    """Of ``[blocks, kv_heads, block_size * dim]`` numbers each."""
    _, kv_heads, size = keys.shape
    return Cache(
        keys=keys.ctypes.data,
        values=values.ctypes.data,
        is_float32=keys.dtype == np.float32,
        block_size=block_size,
        kv_heads=kv_heads,
        head_dim=dim,
        block_stride=kv_heads * size,
    )


@dataclass
class Case:
    """One sequence: queries, keys and values ``[tokens, heads, head_dim]``, and a cache for these two."""

    q: NDArray[np.float32]
    k: NDArray[np.float32]
    v: NDArray[np.float32]
    block_size: int = 16
    window: int = 0
    softcap: float = 0.0
    scale: float = 0.125
    sinks: NDArray[np.float32] | None = None
    dtype: str = "float16"

    def __post_init__(self) -> None:
        tokens, kv_heads, dim = self.k.shape
        blocks = (tokens + self.block_size - 1) // self.block_size
        rng = np.random.default_rng(0)
        self.table = rng.permutation(blocks + 3)[:blocks].astype(np.int32)
        # What was never written is NaN: reading it would show.
        self.keys = np.full((blocks + 3, kv_heads, self.block_size * dim), np.nan, self.dtype)
        self.values = self.keys.copy()
        self.cache = cache_of(self.keys, self.values, self.block_size, dim)

    def store(self, kernels: Kernels, first: int = 0, last: int | None = None) -> None:
        k, v = (np.ascontiguousarray(x[first:last]) for x in (self.k, self.v))
        at = np.arange(first, first + len(k))
        slots = self.table[at // self.block_size].astype(np.int64) * self.block_size + at % self.block_size
        stride = k.shape[1] * k.shape[2]
        kernels.store_kv(
            ctypes.byref(self.cache), k.ctypes.data, v.ctypes.data, stride, slots.ctypes.data, 0, len(k)
        )

    def run(self, kernels: Kernels, tiles: list[tuple[int, int]], split: bool = False) -> NDArray[np.float32]:
        """Attends for the rows of each ``(first, count)`` tile; ``split``: an item for each span of a row."""
        _, heads, dim = self.q.shape
        rows = [row for first, count in tiles for row in range(first, first + count)]
        query = np.ascontiguousarray(self.q[rows])
        out = np.full_like(query, np.nan)
        items, merges, slots, row = [], [], 0, 0
        for first, count in tiles:
            oldest = max(0, first - self.window + 1) if self.window else 0
            begin, end = oldest // SPAN, (first + count - 1) // SPAN + 1
            if split:
                assert count == 1
                for span in range(begin, end):
                    items.append(AttentionItem(row, 1, 0, first, span, span + 1, slots + span - begin))
                merges.append(AttentionMerge(row, slots, end - begin))
                slots += end - begin
            else:
                items.append(AttentionItem(row, count, 0, first, begin, end, -1))
            row += count
        partials = np.full((max(slots, 1), heads, dim + 2), np.nan, np.float32)
        job = Attention(
            self.cache, query.ctypes.data, heads * dim, self.table.ctypes.data, len(self.table), heads,
            self.window, self.scale, self.softcap, out.ctypes.data, heads * dim, partials.ctypes.data,
            None if self.sinks is None else self.sinks.ctypes.data,
        )  # fmt: skip
        units = len(items) * self.cache.kv_heads
        array = (AttentionItem * len(items))(*items)
        for begin in reversed(range(0, units, 2)):  # any order of units will do
            kernels.attention(ctypes.byref(job), array, begin, min(begin + 2, units), max(begin - 2, -1))
        if merges:
            kernels.attention_merge(
                ctypes.byref(job), (AttentionMerge * len(merges))(*merges), 0, len(merges) * heads
            )
        return out

    def expected(self, rows: list[int]) -> NDArray[np.float64]:
        group = self.q.shape[1] // self.k.shape[1]
        k, v = (np.repeat(x.astype(self.dtype).astype(np.float64), group, axis=1) for x in (self.k, self.v))
        scores = np.einsum("qhd,thd->hqt", self.q[rows].astype(np.float64), k) * self.scale
        if self.softcap:
            scores = self.softcap * np.tanh(scores / self.softcap)
        t, position = np.arange(len(k))[None, :], np.array(rows)[:, None]
        seen = (t <= position) & ((t > position - self.window) if self.window else True)
        scores = np.where(seen, scores, -np.inf)
        if self.sinks is not None:  # one column more, with no value
            sinks = np.broadcast_to(self.sinks[:, None, None].astype(np.float64), (*scores.shape[:2], 1))
            scores, v = np.concatenate([scores, sinks], -1), np.concatenate([v, np.zeros_like(v[:1])])
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        return np.einsum("hqt,thd->qhd", weights / weights.sum(-1, keepdims=True), v)


def make(tokens: int, heads: int, kv_heads: int, dim: int, size: float = 1.0, **options: float | str) -> Case:
    rng = np.random.default_rng(tokens + dim)
    q, k, v = (rng.standard_normal((tokens, n, dim)) for n in (heads, kv_heads, kv_heads))
    return Case(*((x * size).astype(np.float32) for x in (q, k, v)), **options)  # type: ignore[arg-type]


def tiles_of(tokens: int, rows: int = 16, first: int = 0) -> list[tuple[int, int]]:
    return [(at, min(rows, tokens - at)) for at in range(first, tokens, rows)]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    ("tokens", "heads", "kv_heads", "dim"),
    [
        (1, 1, 1, 16),
        (5, 4, 2, 64),
        (40, 9, 3, 64),
        (300, 4, 1, 256),
        (530, 6, 6, 32),
        (270, 14, 2, 128),
        (33, 3, 3, 80),
    ],
)
def test_attention_is_that_of_float64(
    kernels: Kernels, tokens: int, heads: int, kv_heads: int, dim: int, dtype: str
) -> None:
    case = make(tokens, heads, kv_heads, dim, dtype=dtype)
    case.store(kernels)
    out = case.run(kernels, tiles_of(tokens))
    np.testing.assert_allclose(out, case.expected(list(range(tokens))), rtol=0, atol=5e-6)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("block_size", [16, 32, 48, 256])
@pytest.mark.parametrize(
    ("window", "softcap"), [(0, 0.0), (1, 0.0), (20, 0.0), (300, 0.0), (0, 50.0), (40, 5.0)]
)
def test_windows_and_caps_are_those_of_float64(
    kernels: Kernels, block_size: int, window: int, softcap: float, dtype: str
) -> None:
    case = make(600, 2, 1, 64, 2.0, block_size=block_size, window=window, softcap=softcap, dtype=dtype)
    case.store(kernels)
    rows = [0, 1, 15, 16, 255, 256, 257, 511, 512, 599]
    out = case.run(kernels, [(row, 1) for row in rows])
    np.testing.assert_allclose(out, case.expected(rows), rtol=0, atol=3e-5)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("window", [0, 100, 256, 300])
@pytest.mark.parametrize(("heads", "kv_heads"), [(3, 1), (4, 2), (7, 1)])
def test_a_row_is_the_same_to_the_bit_in_any_tile_and_any_split(
    kernels: Kernels, window: int, heads: int, kv_heads: int, dtype: str
) -> None:
    case = make(700, heads, kv_heads, 64, window=window, dtype=dtype)
    case.store(kernels)
    whole = case.run(kernels, tiles_of(700))
    for rows, first in ((1, 590), (3, 500), (7, 240), (16, 250)):
        tiles = tiles_of(700, rows, first)
        np.testing.assert_array_equal(case.run(kernels, tiles), whole[first:])
    np.testing.assert_array_equal(case.run(kernels, tiles_of(700, 1, 500), split=True), whole[500:])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("window", [0, 1, 40, 300])
@pytest.mark.parametrize("softcap", [0.0, 5.0])
def test_a_sink_is_one_more_score_of_the_softmax(
    kernels: Kernels, window: int, softcap: float, dtype: str
) -> None:
    """Whatever its size: below all scores it changes nothing, far above them nothing is left."""
    case = make(600, 6, 2, 64, 2.0, window=window, softcap=softcap, dtype=dtype)
    case.sinks = np.array([0.0, 3.0, -2.0, -1e4, 1e4, -np.inf], np.float32)
    case.store(kernels)
    rows = [0, 1, 15, 16, 255, 256, 511, 512, 599]
    out = case.run(kernels, [(row, 1) for row in rows])
    expected = case.expected(rows)
    assert (expected[:, 4] == 0).all()
    np.testing.assert_allclose(out, expected, rtol=0, atol=3e-5)
    case.sinks = None
    np.testing.assert_array_equal(out[:, [3, 5]], case.run(kernels, [(row, 1) for row in rows])[:, [3, 5]])


@pytest.mark.parametrize("window", [0, 300])
def test_rows_with_sinks_are_the_same_to_the_bit_in_any_tile_and_any_split(
    kernels: Kernels, window: int
) -> None:
    case = make(700, 7, 1, 64, window=window)
    case.sinks = np.linspace(-3, 3, 7, dtype=np.float32)
    case.store(kernels)
    whole = case.run(kernels, tiles_of(700))
    for rows, first in ((1, 590), (3, 500), (16, 250)):
        np.testing.assert_array_equal(case.run(kernels, tiles_of(700, rows, first)), whole[first:])
    np.testing.assert_array_equal(case.run(kernels, tiles_of(700, 1, 500), split=True), whole[500:])


def test_a_prefill_tile_does_not_depend_on_what_comes_after_it(kernels: Kernels) -> None:
    case, later = make(64, 4, 2, 64), make(64, 4, 2, 64)
    case.store(kernels, 0, 48)
    later.store(kernels)
    tiles = tiles_of(48)
    np.testing.assert_array_equal(case.run(kernels, tiles), later.run(kernels, tiles))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("window", [0, 60, 290])
def test_a_step_of_many_sequences_equals_each_alone(kernels: Kernels, window: int, dtype: str) -> None:
    """One cache, one call: a decode row, a chunk in the middle, a whole prompt, a short chunk far along."""
    new, cached = (1, 37, 20, 3), (700, 240, 0, 600)
    heads, kv_heads, dim, size = 6, 2, 64, 32
    cases = [
        make(n + c, heads, kv_heads, dim, block_size=size, window=window, dtype=dtype)
        for n, c in zip(new, cached, strict=True)
    ]
    for case in cases:
        case.store(kernels)
    tables = np.full((4, max(len(case.table) for case in cases)), -1, np.int32)
    for i, case in enumerate(cases):
        tables[i, : len(case.table)] = case.table + sum(len(before.keys) for before in cases[:i])
    keys, values = np.concatenate([c.keys for c in cases]), np.concatenate([c.values for c in cases])
    query = np.concatenate([case.q[c:] for case, c in zip(cases, cached, strict=True)])
    out = np.full_like(query, np.nan)
    job = Attention(
        cache_of(keys, values, size, dim),
        query.ctypes.data, heads * dim,
        tables.ctypes.data, tables.shape[1], heads, window, 0.125, 0.0, out.ctypes.data, heads * dim, None,
    )  # fmt: skip
    items, row = [], 0
    for i, (n, c) in enumerate(zip(new, cached, strict=True)):
        for position, rows in tiles_of(n + c, 16, c):
            first = max(0, position - window + 1) // SPAN if window else 0
            items.append(AttentionItem(row, rows, i, position, first, (position + rows - 1) // SPAN + 1, -1))
            row += rows
    kernels.attention(ctypes.byref(job), (AttentionItem * len(items))(*items), 0, len(items) * kv_heads, -1)
    alone = [case.run(kernels, tiles_of(n + c, 16, c)) for case, n, c in zip(cases, new, cached, strict=True)]
    np.testing.assert_array_equal(out, np.concatenate(alone))


@pytest.mark.parametrize("dtype", TYPES)
def test_scores_far_apart_neither_overflow_nor_vanish(kernels: Kernels, dtype: str) -> None:
    case = make(520, 2, 1, 64, 30.0, dtype=dtype)
    case.store(kernels)
    rows = [300, 511, 519]
    out = case.run(kernels, [(row, 1) for row in rows])
    np.testing.assert_allclose(out, case.expected(rows), rtol=0, atol=2e-3)


@pytest.mark.parametrize(
    ("dtype", "stored", "found"),
    [
        ("float16", 1e6, 65504),
        ("float16", np.inf, 65504),
        ("float16", 1 + 2.0**-12, 1),
        ("float32", 1e6, 1e6),
        ("float32", 2.0**-140, 2.0**-140),
        ("float32", np.inf, np.finfo(np.float32).max),
        ("float32", 1 + 2.0**-12, 1 + 2.0**-12),
    ],
)
def test_what_is_beyond_the_type_is_cut_to_its_largest_number(
    kernels: Kernels, dtype: str, stored: float, found: float
) -> None:
    case = make(3, 1, 1, 16, dtype=dtype)
    case.v[0, 0, 3], case.v[0, 0, 4] = stored, -stored
    case.store(kernels)
    out = case.run(kernels, [(0, 1)])
    assert (out[0, 0, 3], out[0, 0, 4]) == (found, -found)


def test_keys_beyond_float16_count_in_a_float32_cache(kernels: Kernels) -> None:
    """Scores of 2 and 1 from keys of 200,000 and 100,000, which float16 would hold as one number."""
    case = make(2, 1, 1, 16, dtype="float32", scale=1.0)
    case.q[:], case.k[:] = 0, 0
    case.q[1, 0, 0], case.k[:, 0, 0] = 1e-5, [2e5, 1e5]
    case.store(kernels)
    np.testing.assert_allclose(case.run(kernels, [(1, 1)]), case.expected([1]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", TYPES)
def test_the_fast_variants_store_what_the_portable_one_stores(
    kernels: Kernels, portable: Kernels, dtype: str
) -> None:
    rng = np.random.default_rng(0)
    ours, theirs = (make(100, 1, 1, 64, dtype=dtype) for _ in range(2))
    extremes = (rng.standard_normal((100, 1, 64)) * np.exp(rng.uniform(-20, 15, (100, 1, 64)))).astype(
        np.float32
    )
    ours.k[:], theirs.k[:] = extremes, extremes
    ours.store(kernels)
    theirs.store(portable)
    np.testing.assert_array_equal(ours.keys, theirs.keys)
    np.testing.assert_array_equal(ours.values, theirs.values)
