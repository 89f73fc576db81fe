// Tiles of two groups side by side in 512-bit vectors: 16 weight rows by M activation rows.
//
// A block's weights stay unpacked in eight registers while the activation rows go by. Every lane sees the
// operations of tile() in matmul.h in the same order, so that the results are the same to the bit.
#pragma once
#include "quants.h"

namespace nl {
namespace NL_VARIANT {

// Two groups' planes, advanced to the block at hand: those of the second are `next` bytes after the first's.
struct Pair {
    typedef F16 Floats;
    typedef I16 Ints;
    typedef B64 Bytes;
    const uint8_t *quants, *high, *scales, *super;
    int64_t next;

    NL_MEMBER Bytes quant_bytes(int at) const { return load_bytes(quants + at, quants + at + next); }
    NL_MEMBER Bytes high_bytes(int at) const { return load_bytes(high + at, high + at + next); }
    NL_MEMBER Floats scale_halves(int i) const { return from_half(scales + 16 * i, scales + 16 * i + next); }
    NL_MEMBER Floats super_halves(int i) const { return from_half(super + 16 * i, super + 16 * i + next); }
    NL_MEMBER Ints scale_bytes(int i) const { return ints_from_bytes(scales + 8 * i, scales + 8 * i + next); }
    NL_MEMBER Ints signed_scale_bytes(int i) const {
        return ints_from_signed_bytes(scales + 8 * i, scales + 8 * i + next);
    }
};

template <class Q, class S, bool fine, int M>
NL_INLINE void wide_tile(Pair pair, const uint8_t* ahead, int64_t blocks, Rows rows, F16 (&acc)[M]) {
    constexpr int64_t bytes = block_bytes<Q, S>();
    for (int m = 0; m < M; ++m) acc[m] = F16{};
    for (int64_t b = 0; b < blocks; ++b) {
        B64 lo[4], hi[4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
            Q::unpack(pair, j, lo[j], hi[j]);
            if constexpr (Q::is_signed) lo[j] ^= 128, hi[j] ^= 128;  // + 128, as in dot_signed
        }
        F16 d, min, min_lo, min_hi;
        I16 scale_lo, scale_hi;
        S::read(pair, d, min);
        if constexpr (Q::is_signed) min = d * -kSignedBias;
        if constexpr (S::halves) {
            scale_lo = pair.signed_scale_bytes(0), scale_hi = pair.signed_scale_bytes(1);
            min_lo = min * to_float(scale_lo), min_hi = min * to_float(scale_hi);
        }
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
            // A few lines a row: all at once they would keep the block's own loads waiting.
            for (int64_t line = 64 * m; line < 2 * bytes; line += 64 * M) fetch<false>(ahead + line, 64);
            const int8_t* a = rows.quants + m * blocks * kBlock;
            const float* scale = rows.meta + m * blocks * 4;
            I16 sum_lo = {}, sum_hi = {};  // two chains, each half as long to wait for
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) {
                sum_lo = dot(sum_lo, lo[j], all_fours_wide(a + 4 * j));
                sum_hi = dot(sum_hi, hi[j], all_fours_wide(a + 16 + 4 * j));
            }
            if constexpr (S::halves) sum_lo *= scale_lo, sum_hi *= scale_hi;
            F16 sum = to_float(sum_lo + sum_hi);
            float inputs = scale[1];
            if constexpr (fine) {
                const int8_t* rest = rows.fine + m * blocks * kBlock;
                sum_lo = I16{}, sum_hi = I16{};
#pragma GCC unroll 4
                for (int j = 0; j < 4; ++j) {
                    sum_lo = dot(sum_lo, lo[j], all_fours_wide(rest + 4 * j));
                    sum_hi = dot(sum_hi, hi[j], all_fours_wide(rest + 16 + 4 * j));
                }
                sum = fma(to_float(sum_lo + sum_hi), every<F16>(1 / kFineSteps), sum);
                inputs += rows.fine_sums[m * blocks];
            }
            acc[m] = fma(d * every<F16>(scale[0]), sum, acc[m]);
            if constexpr (S::halves) {
                acc[m] = fma(min_lo, every<F16>(scale[2]), acc[m]);
                acc[m] = fma(min_hi, every<F16>(scale[3]), acc[m]);
            } else if constexpr (S::has_min || Q::is_signed) {
                acc[m] = fma(min, every<F16>(inputs), acc[m]);
            }
        }
        ahead += 2 * bytes;
        advance<Q, S>(pair, b);
        rows.quants += kBlock, rows.meta += 4;
        if constexpr (fine) rows.fine += kBlock, ++rows.fine_sums;
    }
}

}  // namespace NL_VARIANT
}  // namespace nl
