// Integer products for AVX2, which multiplies unsigned by signed bytes and adds neighbours in saturating
// int16.
#pragma once
#include "simd_x86.h"

#define NL_PANELS

namespace nl {
namespace NL_VARIANT {

// vpmaddubsw gives sums of two products. Weights of up to w leave room for 32767 / (2 * 127 * w) of them in
// int16: eight for 4 bits (30480), four for 5 (31496), two for 6 (32004). The bound on activations, |a| <=
// 127, is quantize's promise.
typedef S16 Narrow;
constexpr int narrow_room(int max_weight) { return 32767 / (2 * 127 * max_weight); }

NL_INLINE Narrow dot(B32 w, B32 a) { return (Narrow)_mm256_maddubs_epi16((__m256i)w, (__m256i)a); }
NL_INLINE Narrow dot(Narrow n, B32 w, B32 a) {
    return (Narrow)_mm256_add_epi16((__m256i)n, (__m256i)dot(w, a));
}
NL_INLINE I8 widen(Narrow n) { return (I8)_mm256_madd_epi16((__m256i)n, _mm256_set1_epi16(1)); }

// A scale per row, twice in each lane as int16: widening multiplies by one anyway, so scaling costs nothing.
typedef S16 RowScale;
NL_INLINE RowScale row_scale(const uint8_t* p) {
    const __m256i bytes = _mm256_broadcastsi128_si256(_mm_loadl_epi64((const __m128i*)p));
    const __m256i high_bytes = _mm256_setr_epi8(-1, 0, -1, 0, -1, 1, -1, 1, -1, 2, -1, 2, -1, 3, -1, 3, -1, 4,
                                                -1, 4, -1, 5, -1, 5, -1, 6, -1, 6, -1, 7, -1, 7);
    return (RowScale)_mm256_srai_epi16(_mm256_shuffle_epi8(bytes, high_bytes), 8);
}
NL_INLINE I8 widen(Narrow n, RowScale scale) { return (I8)_mm256_madd_epi16((__m256i)n, (__m256i)scale); }

// |w| times a with the sign of w. |-128| is 128 as an unsigned byte, and 2 * 128 * 127 = 32512 still fits: no
// special case.
constexpr float kSignedBias = 0;
NL_INLINE I8 dot_signed(I8 sum, B32 w, B32 a) {
    const __m256i signed_a = _mm256_sign_epi8((__m256i)a, (__m256i)w);
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8((__m256i)w), signed_a);
    return sum + (I8)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}

NL_INLINE I8 dot_words(I8 sum, S16 w, S16 a) { return sum + (I8)_mm256_madd_epi16((__m256i)w, (__m256i)a); }

}  // namespace NL_VARIANT
}  // namespace nl
