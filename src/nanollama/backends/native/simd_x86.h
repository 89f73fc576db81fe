// Primitives that every x86 variant shares: AVX2, FMA and F16C are there.
#pragma once
#include <immintrin.h>

#include "simd.h"

namespace nl {
namespace NL_VARIANT {

constexpr int kTileGroups = 2;

NL_INLINE F8 fma(F8 a, F8 b, F8 c) { return (F8)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }

NL_INLINE F8 from_half(const void* p) { return (F8)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
NL_INLINE void to_half(uint16_t* p, F8 v) {
    _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
}
NL_INLINE F8 from_bfloat16(const void* p) {
    return (F8)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16);
}
NL_INLINE I8 ints_from_bytes(const uint8_t* p) {
    return (I8)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p));
}
NL_INLINE I8 ints_from_signed_bytes(const uint8_t* p) {
    return (I8)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p));
}
NL_INLINE I8 round_to_int(F8 v) { return (I8)_mm256_cvtps_epi32((__m256)v); }

NL_INLINE void pack_bytes(int8_t* p, I8 a, I8 b, I8 c, I8 d) {
    const __m256i ab = _mm256_packs_epi32((__m256i)a, (__m256i)b),
                  cd = _mm256_packs_epi32((__m256i)c, (__m256i)d);
    // Both packs work within 128-bit halves: words come out as a0 b0 c0 d0 a1 b1 c1 d1 and are put in order
    // here.
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    _mm256_storeu_si256((__m256i*)p, _mm256_permutevar8x32_epi32(_mm256_packs_epi16(ab, cd), order));
}

NL_INLINE B32 lookup(const int8_t* table, B32 index) {
    const __m256i wide = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)table));
    return (B32)_mm256_shuffle_epi8(wide, (__m256i)index);
}

}  // namespace NL_VARIANT
}  // namespace nl
