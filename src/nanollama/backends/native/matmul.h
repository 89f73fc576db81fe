// Products of R8 weights with one to many activation rows: tiles for decode, batches and prefill.
//
// A tile is G groups of weights (8 output rows each) by M activation rows. For each block of 32 inputs it
// unpacks the weights once, sums 32 integer products in each of the G x M x 8 lanes, and adds them, scaled,
// to float accumulators. Every lane sees the same operations in the same order whatever G and M are, so a
// row's result does not depend on its batch. That holds as well for what takes the rows of batches and
// prefill: tile_wide.h where vectors have sixteen lanes, panel.h where they have eight.
#pragma once
#include "job.h"
#ifdef NL_WIDE
#include "tile_wide.h"
#endif
#ifdef NL_PANELS
#include "panel.h"
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

// The same over activations in words, in units of 1 / kFineSteps. Two sums each, half as long to wait for.
template <class Q, int G, int M>
NL_INLINE void dot_words_block(const Group (&group)[G], const int16_t* const (&a)[M], I8 (&sum)[G][M]) {
    I8 first[G][M], second[G][M];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
        S16 even[2][G], odd[2][G];
        for (int g = 0; g < G; ++g) {
            B32 lo, hi;
            Q::unpack(group[g], j, lo, hi);
            to_words<Q::is_signed>(lo, even[0][g], odd[0][g]);
            to_words<Q::is_signed>(hi, even[1][g], odd[1][g]);
        }
        for (int m = 0; m < M; ++m) {
            for (int half = 0; half < 2; ++half) {
                const int16_t* four = a[m] + 16 * half + 4 * j;
                for (int g = 0; g < G; ++g) {
                    const bool is_first = j == 0 && half == 0;
                    first[g][m] =
                        dot_words(is_first ? all_int(0) : first[g][m], even[half][g], all_twos(four));
                    second[g][m] =
                        dot_words(is_first ? all_int(0) : second[g][m], odd[half][g], all_twos(four + 2));
                }
            }
        }
    }
    for (int g = 0; g < G; ++g)
        for (int m = 0; m < M; ++m) sum[g][m] = first[g][m] + second[g][m];
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

// ---- tiles ------------------------------------------------------------------------------------------------

// `words`: activations are taken as words, else as bytes. `past_l2`: where the weights to come are fetched
// to.
template <class Q, class S, bool words, bool past_l2, int G, int M>
NL_INLINE void tile(const uint8_t* const (&base)[G], const Planes& planes, const uint8_t* later,
                    int64_t blocks, const Rows& rows, F8 (&acc)[G][M]) {
    static_assert(!(words && S::halves), "no kind with a scale for each half takes words");
    constexpr bool has_bias = !words && Q::is_signed && kSignedBias != 0;
    Group group[G];
    const int8_t* a[M];
    const int16_t* wide[M];
    const float *scales[M], *word_sums[M];
    for (int g = 0; g < G; ++g)
        group[g] = {base[g], base[g] + planes.high, base[g] + planes.scales, base[g] + planes.super};
    for (int m = 0; m < M; ++m) {
        scales[m] = rows.meta + m * blocks * 4;
        if constexpr (words)
            wide[m] = rows.words + m * blocks * kBlock, word_sums[m] = rows.word_sums + m * blocks;
        else
            a[m] = rows.quants + m * blocks * kBlock;
    }
    for (int g = 0; g < G; ++g)
        for (int m = 0; m < M; ++m) acc[g][m] = all(0);

    constexpr int64_t bytes = block_bytes<Q, S>();
    for (int64_t b = 0; b < blocks; ++b) {
        I8 sum[G][M];
        if constexpr (words)
            dot_words_block<Q, G, M>(group, wide, sum);
        else if constexpr (S::halves)
            dot_halves<Q, G, M>(group, a, sum);
        else
            dot_block<Q, G, M>(group, a, sum);
        for (int g = 0; g < G; ++g) {
            F8 d, min;
            S::read(group[g], d, min);
            if constexpr (has_bias) min = d * all(-kSignedBias);
            if constexpr (words) d *= all(1 / kFineSteps);
            for (int m = 0; m < M; ++m) {
                acc[g][m] = fma(d * all(scales[m][0]), to_float(sum[g][m]), acc[g][m]);
                if constexpr (S::halves) {
                    const F8 first = to_float(ints_from_signed_bytes(group[g].scales));
                    const F8 second = to_float(ints_from_signed_bytes(group[g].scales + 8));
                    acc[g][m] = fma(min * first, all(scales[m][2]), acc[g][m]);
                    acc[g][m] = fma(min * second, all(scales[m][3]), acc[g][m]);
                } else if constexpr (S::has_min || has_bias) {
                    acc[g][m] = fma(min, all(words ? *word_sums[m] : scales[m][1]), acc[g][m]);
                }
            }
            fetch<past_l2>(later + (b * G + g) * bytes, bytes);
            advance<Q, S>(group[g], b);
        }
        for (int m = 0; m < M; ++m) {
            scales[m] += 4;
            if constexpr (words)
                wide[m] += kBlock, ++word_sums[m];
            else
                a[m] += kBlock;
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

// `past_l2`: for weights that one tile alone will read. More than one would not find them.
template <class Q, class S, bool words = false, bool past_l2 = false>
struct QuantTiles {
    typedef QuantTiles<Q, S, words, true> PastL2;
    static constexpr int decode_groups = kTileGroups;
    template <int G, int M>
    NL_INLINE void run(const Job& job, int64_t group, const uint8_t* const (&base)[G], int64_t row,
                       F8 (&acc)[G][M]) {
        tile<Q, S, words, past_l2, G, M>(base, job.planes, job.later<past_l2, G>(group), job.cols / kBlock,
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
        float_tile<kind, past_l2, G, M>(base, job.later<past_l2, G>(group), job.cols,
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

template <class Q, class S, bool words, int M>
__attribute__((noinline)) void run_wide_tile(const Job& job, int64_t group, int64_t row) {
    const Planes& planes = job.planes;
    const bool two = group + 1 < job.end;
    const uint8_t* base = job.data + group * planes.group;
    const Pair pair = {base, base + planes.high, base + planes.scales, base + planes.super,
                       two ? planes.group : 0};
    F16 acc[M];
    wide_tile<Q, S, words, M>(pair, job.later<false, 2>(group), job.cols / kBlock, Rows(*job.x, row), acc);
    for (int m = 0; m < M; ++m) {
        job.out.put(group, row + m, lower(acc[m]));
        if (two) job.out.put(group + 1, row + m, upper(acc[m]));
    }
}

// Sixteen rows to a tile would be 5 % faster, and 25 % slower where a row is a multiple of 4 KiB: all of them
// then share one set of L1, which holds 12 lines (Zen 5).
template <class Q, class S, bool words>
void run_rows(QuantTiles<Q, S, words>, const Job& job, int64_t group, int64_t row, int64_t last) {
    for (; row + 8 <= last; row += 8) run_wide_tile<Q, S, words, 8>(job, group, row);
    if (row + 4 <= last) run_wide_tile<Q, S, words, 4>(job, group, row), row += 4;
    if (row + 2 <= last) run_wide_tile<Q, S, words, 2>(job, group, row), row += 2;
    if (row < last) run_wide_tile<Q, S, words, 1>(job, group, row);
}
#endif

template <class Tiles>
void run_job(const Job& job, int64_t rows) {
    int64_t turn = kTurnBytes / job.cols / 4 * 4;
    if (turn < 4) turn = 4;
    for (int64_t first = 0; first < rows; first += turn) {
        const int64_t last = first + turn < rows ? first + turn : rows;
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

template <class Q, class S>
void run_quants(const Job& job, int64_t rows) {
#ifdef NL_PANELS
    if constexpr (!Q::is_signed) {
        typedef ByteBlock<Q::max_weight> Whole;
        typedef HalvesBlock<Q::max_weight> Halves;
        typedef typename std::conditional<S::halves, Halves, Whole>::type Block;
        if (rows >= kPanelLeastRows) return run_panels<Q, S, Block>(job, rows, job.x->quants);
    }
#endif
    run_job<QuantTiles<Q, S>>(job, rows);
}

// With activations in words where they are there: somebody who shares them may not want them.
template <class Q, class S>
void run_words_or_bytes(const Job& job, int64_t rows) {
    if (!job.x->words) return run_quants<Q, S>(job, rows);
#ifdef NL_PANELS
    if (rows >= kPanelLeastRows) return run_panels<Q, S, WordBlock<S::has_min>>(job, rows, job.x->words);
#endif
    run_job<QuantTiles<Q, S, true>>(job, rows);
}

inline void run_kind(int64_t kind, const Job& job, int64_t rows) {
    switch (kind) {
        case NL_U4D: return run_quants<Bits4, ScaleHalf<8>>(job, rows);
        case NL_U4DM: return run_words_or_bytes<Bits4, ScaleHalfMin>(job, rows);
        case NL_U5D: return run_words_or_bytes<Bits5, ScaleHalf<16>>(job, rows);
        case NL_U5DM: return run_words_or_bytes<Bits5, ScaleHalfMin>(job, rows);
        case NL_S8D: return run_words_or_bytes<Bits8, ScaleHalf<0>>(job, rows);
        case NL_U4K: return run_quants<Bits4, ScaleSuper>(job, rows);
        case NL_U5K: return run_words_or_bytes<Bits5, ScaleSuper>(job, rows);
        case NL_U6K: return run_quants<Bits6, ScaleSuperHalves>(job, rows);
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
