// Products of R8 weights with one to many activation rows: tiles for decode, batches and prefill.
//
// A tile is G groups of weights (8 output rows each) by M activation rows. For each block of 32 inputs it
// unpacks the weights once, sums 32 integer products in each of the G x M x 8 lanes, and adds them, scaled,
// to float accumulators. Every lane sees the same operations in the same order whatever G and M are, so a
// row's result does not depend on its batch. That holds for tile_wide.h as well, which takes the rows of
// batches and prefill where vectors have sixteen lanes.
#pragma once
#include "quants.h"
#ifdef NL_WIDE
#include "tile_wide.h"
#endif
#ifdef NL_WORDS
#include "tile_words.h"
#endif

namespace nl {
namespace NL_VARIANT {

// ---- integer sums of one block ----------------------------------------------------------------------------

template <class Q, int G, int M>
NL_INLINE void dot_block(const Group (&group)[G], const int8_t* const (&a)[M], I8 (&sum)[G][M]) {
    constexpr int room = narrow_room(Q::max_weight) / 2;  // steps, of two dots each, before a Narrow is full
    Narrow part[G][M];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
        B32 lo[G], hi[G];
        for (int g = 0; g < G; ++g) Q::unpack(group[g], j, lo[g], hi[g]);
        for (int m = 0; m < M; ++m) {
            const B32 a_lo = all_fours(a[m] + 4 * j), a_hi = all_fours(a[m] + 16 + 4 * j);
            for (int g = 0; g < G; ++g) {
                if constexpr (Q::is_signed) {
                    const I8 before = j == 0 ? all_int(0) : sum[g][m];
                    sum[g][m] = dot_signed(dot_signed(before, lo[g], a_lo), hi[g], a_hi);
                } else {
                    part[g][m] = j % room == 0 ? dot(lo[g], a_lo) : dot(part[g][m], lo[g], a_lo);
                    part[g][m] = dot(part[g][m], hi[g], a_hi);
                    if (j != 3 && (j + 1) % room != 0) continue;
                    sum[g][m] = j < room ? widen(part[g][m]) : sum[g][m] + widen(part[g][m]);
                }
            }
        }
    }
}

// The same where inputs 0-15 and 16-31 have a scale each: `lo` vectors are the first half, `hi` the second.
template <class Q, int G, int M>
NL_INLINE void dot_halves(const Group (&group)[G], const int8_t* const (&a)[M], I8 (&sum)[G][M]) {
    constexpr int room = narrow_room(Q::max_weight);
    Narrow first[G][M], second[G][M];
    RowScale scale_lo[G], scale_hi[G];
    for (int g = 0; g < G; ++g)
        scale_lo[g] = row_scale(group[g].scales), scale_hi[g] = row_scale(group[g].scales + 8);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
        B32 lo[G], hi[G];
        for (int g = 0; g < G; ++g) Q::unpack(group[g], j, lo[g], hi[g]);
        for (int m = 0; m < M; ++m) {
            const B32 a_lo = all_fours(a[m] + 4 * j), a_hi = all_fours(a[m] + 16 + 4 * j);
            for (int g = 0; g < G; ++g) {
                first[g][m] = j % room == 0 ? dot(lo[g], a_lo) : dot(first[g][m], lo[g], a_lo);
                second[g][m] = j % room == 0 ? dot(hi[g], a_hi) : dot(second[g][m], hi[g], a_hi);
                if (j != 3 && (j + 1) % room != 0) continue;
                const I8 both = widen(first[g][m], scale_lo[g]) + widen(second[g][m], scale_hi[g]);
                sum[g][m] = j < room ? both : sum[g][m] + both;
            }
        }
    }
}

#ifndef NL_WORDS
// The sums over either part of the activations as one, in units of quants.
NL_INLINE F8 joined(I8 sum, I8 fine_sum) {
    return fma(to_float(fine_sum), all(1 / kFineSteps), to_float(sum));
}
#endif

// ---- tiles ------------------------------------------------------------------------------------------------

// `fine`: both parts of the activations count. `past_l2`: where the weights to come are fetched to.
template <class Q, class S, bool fine, bool past_l2, int G, int M>
NL_INLINE void tile(const uint8_t* const (&base)[G], const Planes& planes, const uint8_t* later,
                    int64_t blocks, const Rows& rows, F8 (&acc)[G][M]) {
    Group group[G];
    const int8_t *a[M], *rest[M];
    const float *scales[M], *rest_sums[M];
    for (int g = 0; g < G; ++g)
        group[g] = {base[g], base[g] + planes.high, base[g] + planes.scales, base[g] + planes.super};
    for (int m = 0; m < M; ++m) {
        a[m] = rows.quants + m * blocks * kBlock, scales[m] = rows.meta + m * blocks * 4;
        if constexpr (fine)
            rest[m] = rows.fine + m * blocks * kBlock, rest_sums[m] = rows.fine_sums + m * blocks;
    }
    for (int g = 0; g < G; ++g)
        for (int m = 0; m < M; ++m) acc[g][m] = all(0);

    constexpr int64_t bytes = block_bytes<Q, S>();
    for (int64_t b = 0; b < blocks; ++b) {
        I8 sum[G][M], rest_sum[G][M];
        if constexpr (S::halves)
            dot_halves<Q, G, M>(group, a, sum);
        else
            dot_block<Q, G, M>(group, a, sum);
        if constexpr (fine) dot_block<Q, G, M>(group, rest, rest_sum);
        for (int g = 0; g < G; ++g) {
            F8 d, min;
            S::read(group[g], d, min);
            if constexpr (Q::is_signed && kSignedBias != 0) min = d * all(-kSignedBias);
            for (int m = 0; m < M; ++m) {
                F8 dot;
                if constexpr (fine)
                    dot = joined(sum[g][m], rest_sum[g][m]);
                else
                    dot = to_float(sum[g][m]);
                acc[g][m] = fma(d * all(scales[m][0]), dot, acc[g][m]);
                if constexpr (S::halves) {
                    const F8 first = to_float(ints_from_signed_bytes(group[g].scales));
                    const F8 second = to_float(ints_from_signed_bytes(group[g].scales + 8));
                    acc[g][m] = fma(min * first, all(scales[m][2]), acc[g][m]);
                    acc[g][m] = fma(min * second, all(scales[m][3]), acc[g][m]);
                } else if constexpr (S::has_min || (Q::is_signed && kSignedBias != 0)) {
                    acc[g][m] = fma(min, all(fine ? scales[m][1] + *rest_sums[m] : scales[m][1]), acc[g][m]);
                }
            }
            fetch<past_l2>(later + (b * G + g) * bytes, bytes);
            advance<Q, S>(group[g], b);
        }
        for (int m = 0; m < M; ++m) {
            a[m] += kBlock, scales[m] += 4;
            if constexpr (fine) rest[m] += kBlock, ++rest_sums[m];
        }
    }
}

enum FloatKind { kHalf, kBfloat16, kSingle };

template <FloatKind kind>
NL_INLINE F8 load_weights(const uint8_t* p) {
    if constexpr (kind == kHalf) return from_half(p);
    if constexpr (kind == kSingle) return load((const float*)p);
    return from_bfloat16(p);
}

template <FloatKind kind, bool past_l2, int G, int M>
NL_INLINE void float_tile(const uint8_t* const (&base)[G], const uint8_t* later, int64_t cols,
                          const float* values, int64_t stride, F8 (&acc)[G][M]) {
    constexpr int64_t step = kind == kSingle ? 32 : 16;
    for (int g = 0; g < G; ++g)
        for (int m = 0; m < M; ++m) acc[g][m] = all(0);
    for (int64_t k = 0; k < cols; ++k) {
        for (int g = 0; g < G; ++g) {
            const int64_t at = (k * G + g) * step;
            if (at % 64 == 0) fetch<past_l2>(later + at, 64);
            const F8 w = load_weights<kind>(base[g] + k * step);
            for (int m = 0; m < M; ++m) acc[g][m] = fma(w, all(values[m * stride + k]), acc[g][m]);
        }
    }
}

// ---- a range of groups by all rows ------------------------------------------------------------------------

struct Output {
    float* at;  // row 0, column 0 of the segment
    int64_t stride;
    const float* bias;  // of the segment's column 0, or null
    int64_t rows;       // weight rows of the segment, without padding

    void put(int64_t group, int64_t row, F8 v) const {
        float* to = at + row * stride + group * kRows;
        const int64_t count = rows - group * kRows < kRows ? rows - group * kRows : kRows;
        if (count == kRows) {
            if (bias) v += load(bias + group * kRows);
            store(to, v);
            return;
        }
        for (int64_t i = 0; i < count; ++i) {
            to[i] = v[i];
            if (bias) to[i] += bias[group * kRows + i];
        }
    }
};

struct Job {
    const uint8_t* data;
    Planes planes;
    int64_t cols;
    const NlActivations* x;
    Output out;
    int64_t begin, end;   // groups
    const uint8_t* next;  // what to fetch past the end

    // What to fetch while G groups from `group` on are multiplied.
    template <int G>
    NL_MEMBER const uint8_t* later(int64_t group) const {
        const int64_t then = group + fetch_distance<G>(planes);
        return then < end ? data + then * planes.group : next + (then - end) * planes.group;
    }
};

// `past_l2`: for weights that one tile alone will read. More than one would not find them.
template <class Q, class S, bool fine = false, bool past_l2 = false>
struct QuantTiles {
    typedef QuantTiles<Q, S, fine, true> PastL2;
    static constexpr int decode_groups = kTileGroups;
    template <int G, int M>
    NL_INLINE void run(const Job& job, int64_t group, const uint8_t* const (&base)[G], int64_t row,
                       F8 (&acc)[G][M]) {
        tile<Q, S, fine, past_l2, G, M>(base, job.planes, job.later<G>(group), job.cols / kBlock,
                                        Rows(*job.x, row), acc);
    }
};

template <FloatKind kind, bool past_l2 = false>
struct FloatTiles {
    typedef FloatTiles<kind, true> PastL2;
    // A group is one chain of additions: several of them side by side hide their latency.
    static constexpr int decode_groups = 2 * kTileGroups;
    template <int G, int M>
    NL_INLINE void run(const Job& job, int64_t group, const uint8_t* const (&base)[G], int64_t row,
                       F8 (&acc)[G][M]) {
        float_tile<kind, past_l2, G, M>(base, job.later<G>(group), job.cols,
                                        job.x->values + row * job.x->stride, job.x->stride, acc);
    }
};

// G groups by M rows. Past the last group the last one is computed again and dropped, which spares a second
// set of tiles.
template <class Tiles, int G, int M>
__attribute__((noinline)) void run_tile(const Job& job, int64_t group, int64_t row) {
    const uint8_t* base[G];
    for (int g = 0; g < G; ++g)
        base[g] = job.data + (group + g < job.end ? group + g : group) * job.planes.group;
    F8 acc[G][M];
    Tiles::template run<G, M>(job, group, base, row, acc);
    for (int g = 0; g < G && group + g < job.end; ++g)
        for (int m = 0; m < M; ++m) job.out.put(group + g, row + m, acc[g][m]);
}

// Activation rows [row, last) by kTileGroups groups.
template <class Tiles>
void run_rows(Tiles, const Job& job, int64_t group, int64_t row, int64_t last) {
    for (; row + 4 <= last; row += 4) run_tile<Tiles, kTileGroups, 4>(job, group, row);
    if (row + 2 <= last) run_tile<Tiles, kTileGroups, 2>(job, group, row), row += 2;
    if (row < last) run_tile<Tiles, kTileGroups, 1>(job, group, row);
}

#ifdef NL_WIDE
static_assert(kTileGroups == 2, "a wide tile takes two groups");

template <class Q, class S, bool fine, int M>
__attribute__((noinline)) void run_wide_tile(const Job& job, int64_t group, int64_t row) {
    const Planes& planes = job.planes;
    const bool two = group + 1 < job.end;
    const uint8_t* base = job.data + group * planes.group;
    const Pair pair = {base, base + planes.high, base + planes.scales, base + planes.super,
                       two ? planes.group : 0};
    F16 acc[M];
    wide_tile<Q, S, fine, M>(pair, job.later<2>(group), job.cols / kBlock, Rows(*job.x, row), acc);
    for (int m = 0; m < M; ++m) {
        job.out.put(group, row + m, lower(acc[m]));
        if (two) job.out.put(group + 1, row + m, upper(acc[m]));
    }
}

// Sixteen rows to a tile would be 5 % faster, and 25 % slower where a row is a multiple of 4 KiB: all of them
// then share one set of L1, which holds 12 lines (Zen 5).
template <class Q, class S, bool fine>
void run_rows(QuantTiles<Q, S, fine>, const Job& job, int64_t group, int64_t row, int64_t last) {
    for (; row + 8 <= last; row += 8) run_wide_tile<Q, S, fine, 8>(job, group, row);
    if (row + 4 <= last) run_wide_tile<Q, S, fine, 4>(job, group, row), row += 4;
    if (row + 2 <= last) run_wide_tile<Q, S, fine, 2>(job, group, row), row += 2;
    if (row < last) run_wide_tile<Q, S, fine, 1>(job, group, row);
}
#endif

// Activation rows are taken in panels that stay in L2 while the groups of the range go by.
constexpr int64_t kPanelBytes = 128 * 1024;

template <class Tiles>
void run_job(const Job& job, int64_t rows) {
    int64_t panel = kPanelBytes / job.cols / 4 * 4;
    if (panel < 4) panel = 4;
    for (int64_t first = 0; first < rows; first += panel) {
        const int64_t last = first + panel < rows ? first + panel : rows;
        if (last - first == 1) {
            constexpr int G = Tiles::decode_groups;
            const auto run =
                kPastL2 && rows == 1 ? run_tile<typename Tiles::PastL2, G, 1> : run_tile<Tiles, G, 1>;
            for (int64_t group = job.begin; group < job.end; group += G) run(job, group, first);
            continue;
        }
        for (int64_t group = job.begin; group < job.end; group += kTileGroups)
            run_rows(Tiles(), job, group, first, last);
    }
}

#ifdef NL_WORDS
constexpr int64_t kPanelWords = 64 * 1024;

template <class Q, class S, int M>
__attribute__((noinline)) void run_words_tile(const Job& job, int64_t group, int64_t row,
                                              const int16_t* words) {
    F8 acc[M];
    words_tile<Q, S, M>(job.data + group * job.planes.group, job.planes, job.later<1>(group),
                        job.cols / kBlock, Rows(*job.x, row), words, acc);
    for (int m = 0; m < M; ++m) job.out.put(group, row + m, acc[m]);
}

// Several rows with both parts of their activations; four fit a panel.
template <class Q, class S>
void run_words(const Job& job, int64_t rows) {
    alignas(64) int16_t words[kPanelWords];
    const int64_t cols = job.cols, panel = kPanelWords / cols / 4 * 4;
    for (int64_t first = 0; first < rows; first += panel) {
        const int64_t last = first + panel < rows ? first + panel : rows;
        join_parts(Rows(*job.x, first), (last - first) * cols, words);
        for (int64_t group = job.begin; group < job.end; ++group) {
            int64_t row = first;
            for (; row + 4 <= last; row += 4)
                run_words_tile<Q, S, 4>(job, group, row, words + (row - first) * cols);
            for (; row < last; ++row) run_words_tile<Q, S, 1>(job, group, row, words + (row - first) * cols);
        }
    }
}
#endif

// With both parts of the activations where they are there: somebody who shares them may not want them.
template <class Q, class S>
void run_fine_or_not(const Job& job, int64_t rows) {
#ifdef NL_WORDS
    // Weights of four bits are multiplied faster in bytes: their products leave room to be summed in int16.
    if constexpr (Q::max_weight > 15)
        if (job.x->fine && rows > 1 && 4 * job.cols <= kPanelWords) return run_words<Q, S>(job, rows);
#endif
    if (job.x->fine) return run_job<QuantTiles<Q, S, true>>(job, rows);
    run_job<QuantTiles<Q, S>>(job, rows);
}

inline void run_kind(int64_t kind, const Job& job, int64_t rows) {
    switch (kind) {
        case NL_U4D: return run_job<QuantTiles<Bits4, ScaleHalf<8>>>(job, rows);
        case NL_U4DM: return run_fine_or_not<Bits4, ScaleHalfMin>(job, rows);
        case NL_U5D: return run_fine_or_not<Bits5, ScaleHalf<16>>(job, rows);
        case NL_U5DM: return run_fine_or_not<Bits5, ScaleHalfMin>(job, rows);
        case NL_S8D: return run_fine_or_not<Bits8, ScaleHalf<0>>(job, rows);
        case NL_U4K: return run_job<QuantTiles<Bits4, ScaleSuper>>(job, rows);
        case NL_U5K: return run_fine_or_not<Bits5, ScaleSuper>(job, rows);
        case NL_U6K: return run_job<QuantTiles<Bits6, ScaleSuperHalves>>(job, rows);
        case NL_N4D: return run_job<QuantTiles<Codebook<kTableIq4Nl>, ScaleHalf<0>>>(job, rows);
        case NL_N4E: return run_job<QuantTiles<Codebook<kTableMxfp4>, ScaleExponent>>(job, rows);
        case NL_F16: return run_job<FloatTiles<kHalf>>(job, rows);
        case NL_BF16: return run_job<FloatTiles<kBfloat16>>(job, rows);
        default: return run_job<FloatTiles<kSingle>>(job, rows);
    }
}

inline void matmul(const NlMatrix* matrix, const NlActivations* x, int64_t rows, float* out,
                   int64_t out_stride, const float* bias, int64_t begin, int64_t end, const uint8_t* next) {
    int64_t first = 0;  // unit number of the segment's first group
    for (int64_t s = 0; s < matrix->segment_count; ++s) {
        const NlSegment& segment = matrix->segments[s];
        const int64_t groups = groups_of(segment.rows);
        const int64_t from = begin > first ? begin - first : 0,
                      to = end - first < groups ? end - first : groups;
        if (from < to) {
            const Output output = {out + segment.out_column, out_stride,
                                   bias ? bias + segment.out_column : nullptr, segment.rows};
            const Planes planes = planes_of(segment.kind, matrix->cols);
            const uint8_t* following = end > first + groups ? matrix->segments[s + 1].data
                                       : next               ? next
                                                            : segment.data + to * planes.group;
            run_kind(segment.kind, {segment.data, planes, matrix->cols, x, output, from, to, following},
                     rows);
        }
        first += groups;
    }
}

}  // namespace NL_VARIANT
}  // namespace nl
