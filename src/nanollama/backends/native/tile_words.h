// Tiles over 16-bit activations: where both parts of the activations count and bytes would have to be
// multiplied twice.
//
// 254 times `quants` plus `fine` is a number of 16 bits. Without VNNI, 32 products of signed bytes take four
// instructions for either part (a sign, two multiplications, a sum), and four for both as words. The integer
// sums are those of tile() in matmul.h, joined, so that the results are the same to the bit.
#pragma once
#include "quants.h"

namespace nl {
namespace NL_VARIANT {

// `count` activations, quants and fine, as words.
NL_INLINE void join_parts(const Rows& rows, int64_t count, int16_t* words) {
    for (int64_t i = 0; i < count; i += 16)
        store_words(words + i, rows.quants + i, rows.fine + i, int16_t(kFineSteps));
}

// Sums over words in units of quants; and so the sums over either part in bytes.
NL_INLINE F8 in_quants(I8 sum) { return to_float(sum) * all(1 / kFineSteps); }
NL_INLINE F8 joined(I8 sum, I8 fine_sum) { return in_quants(sum * int32_t(kFineSteps) + fine_sum); }

// One group by M rows, which begin at `words` and have `blocks` blocks each.
template <class Q, class S, int M>
NL_INLINE void words_tile(const uint8_t* base, const Planes& planes, const uint8_t* later, int64_t blocks,
                          const Rows& rows, const int16_t* words, F8 (&acc)[M]) {
    constexpr int64_t bytes = block_bytes<Q, S>();
    Group group = {base, base + planes.high, base + planes.scales, base + planes.super};
    const float *scale = rows.meta, *fine_sum = rows.fine_sums;
    for (int m = 0; m < M; ++m) acc[m] = all(0);
    for (int64_t b = 0; b < blocks; ++b) {
        WordSums sums[M];
        for (int m = 0; m < M; ++m) sums[m] = {all_int(0), all_int(0)};
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
            B32 lo, hi;
            Q::unpack(group, j, lo, hi);
            const Words low = words_of<Q::is_signed>(lo), high = words_of<Q::is_signed>(hi);
            for (int m = 0; m < M; ++m) {
                const int16_t* x = words + (m * blocks + b) * kBlock;
                add_products(sums[m], low, x + 4 * j);
                add_products(sums[m], high, x + 16 + 4 * j);
            }
        }
        F8 d, min;
        S::read(group, d, min);
        for (int m = 0; m < M; ++m) {
            const int64_t at = m * blocks + b;
            acc[m] = fma(d * all(scale[4 * at]), in_quants(rows_of(sums[m])), acc[m]);
            if constexpr (S::has_min) acc[m] = fma(min, all(scale[4 * at + 1] + fine_sum[at]), acc[m]);
        }
        fetch<false>(later + b * bytes, bytes);
        advance<Q, S>(group, b);
    }
}

}  // namespace NL_VARIANT
}  // namespace nl
