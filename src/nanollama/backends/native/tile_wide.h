// Tiles of two groups side by side in 512-bit vectors: 16 weight rows by M activation rows.
//
// A block's weights stay unpacked in eight registers while the activation rows go by. Every lane sees the
// operations of tile() in matmul.h in the same order, so that the results are the same to the bit.
#pragma once
#include <type_traits>

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

// A block's weights, unpacked: as unsigned bytes, or as words.
template <class Q>
struct WideBytes {
    B64 quants[8];

    NL_MEMBER explicit WideBytes(const Pair& pair) {
        for (int j = 0; j < 4; ++j) Q::unpack(pair, j, quants[2 * j], quants[2 * j + 1]);
        if constexpr (Q::is_signed)
            for (B64& v : quants) v ^= 128;  // + 128, as in dot_signed
    }

    // Sums over inputs 0-15 and 16-31.
    NL_MEMBER void dot(const Rows& rows, int64_t at, I16& first, I16& second) const {
        first = second = I16{};
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
            first = NL_VARIANT::dot(first, quants[2 * j], all_fours_wide(rows.quants + at + 4 * j));
            second =
                NL_VARIANT::dot(second, quants[2 * j + 1], all_fours_wide(rows.quants + at + 16 + 4 * j));
        }
    }
};

template <class Q>
struct WideWords {
    S32 even[8], odd[8];

    NL_MEMBER explicit WideWords(const Pair& pair) {
        for (int j = 0; j < 4; ++j) {
            B64 lo, hi;
            Q::unpack(pair, j, lo, hi);
            to_words<Q::is_signed>(lo, even[2 * j], odd[2 * j]);
            to_words<Q::is_signed>(hi, even[2 * j + 1], odd[2 * j + 1]);
        }
    }

    // Sums over even and odd inputs.
    NL_MEMBER void dot(const Rows& rows, int64_t at, I16& first, I16& second) const {
        first = second = I16{};
#pragma GCC unroll 8
        for (int j = 0; j < 8; ++j) {
            const int16_t* four = rows.words + at + j / 2 * 4 + j % 2 * 16;
            first = dot_words(first, even[j], all_twos_wide(four));
            second = dot_words(second, odd[j], all_twos_wide(four + 2));
        }
    }
};

template <class Q, class S, bool words, int M>
NL_INLINE void wide_tile(Pair pair, const uint8_t* ahead, int64_t blocks, Rows rows, F16 (&acc)[M]) {
    constexpr int64_t bytes = block_bytes<Q, S>();
    constexpr bool has_bias = !words && Q::is_signed;
    for (int m = 0; m < M; ++m) acc[m] = F16{};
    for (int64_t b = 0; b < blocks; ++b) {
        const typename std::conditional<words, WideWords<Q>, WideBytes<Q>>::type weights(pair);
        F16 d, min, min_lo, min_hi;
        I16 scale_lo, scale_hi;
        S::read(pair, d, min);
        if constexpr (has_bias) min = d * -kSignedBias;
        if constexpr (words) d *= 1 / kFineSteps;
        if constexpr (S::halves) {
            scale_lo = pair.signed_scale_bytes(0), scale_hi = pair.signed_scale_bytes(1);
            min_lo = min * to_float(scale_lo), min_hi = min * to_float(scale_hi);
        }
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
            // A few lines a row: all at once they would keep the block's own loads waiting.
            for (int64_t line = 64 * m; line < 2 * bytes; line += 64 * M) fetch<false>(ahead + line, 64);
            const float* scale = rows.meta + m * blocks * 4;
            I16 first, second;
            weights.dot(rows, m * blocks * kBlock, first, second);
            if constexpr (S::halves) first *= scale_lo, second *= scale_hi;
            acc[m] = fma(d * every<F16>(scale[0]), to_float(first + second), acc[m]);
            if constexpr (S::halves) {
                acc[m] = fma(min_lo, every<F16>(scale[2]), acc[m]);
                acc[m] = fma(min_hi, every<F16>(scale[3]), acc[m]);
            } else if constexpr (S::has_min || has_bias) {
                acc[m] = fma(min, every<F16>(words ? rows.word_sums[m * blocks] : scale[1]), acc[m]);
            }
        }
        ahead += 2 * bytes;
        advance<Q, S>(pair, b);
        rows.meta += 4;
        if constexpr (words)
            rows.words += kBlock, ++rows.word_sums;
        else
            rows.quants += kBlock;
    }
}

}  // namespace NL_VARIANT
}  // namespace nl
