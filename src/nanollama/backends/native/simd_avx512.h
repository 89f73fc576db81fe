// Integer products for AVX-512 VNNI: four unsigned by signed products into each 32-bit lane, with no bound to
// watch; and the 512-bit vectors of tile_wide.h.
#pragma once
#include "simd_x86.h"

#define NL_WIDE

namespace nl {
namespace NL_VARIANT {

typedef I8 Narrow;
constexpr int narrow_room(int) { return 1 << 16; }

NL_INLINE Narrow dot(Narrow n, B32 w, B32 a) {
    return (I8)_mm256_dpbusd_epi32((__m256i)n, (__m256i)w, (__m256i)a);
}
NL_INLINE Narrow dot(B32 w, B32 a) { return dot(all_int(0), w, a); }
NL_INLINE I8 widen(Narrow n) { return n; }

typedef I8 RowScale;
NL_INLINE RowScale row_scale(const uint8_t* p) { return ints_from_signed_bytes(p); }
NL_INLINE I8 widen(Narrow n, RowScale scale) { return n * scale; }

// Signed weights are made unsigned by adding 128 (flipping the top bit); the tile takes 128 times the
// activations' sum off.
constexpr float kSignedBias = 128;
NL_INLINE I8 dot_signed(I8 sum, B32 w, B32 a) { return dot(sum, w ^ all_bytes(128), a); }

NL_INLINE I8 dot_words(I8 sum, S16 w, S16 a) {
    return (I8)_mm256_dpwssd_epi32((__m256i)sum, (__m256i)w, (__m256i)a);
}

// ---- sixteen lanes ----------------------------------------------------------------------------------------

typedef float F16 __attribute__((vector_size(64)));
typedef int32_t I16 __attribute__((vector_size(64)));
typedef int16_t S32 __attribute__((vector_size(64)));
typedef uint16_t U32 __attribute__((vector_size(64)));
typedef uint8_t B64 __attribute__((vector_size(64)));

template <>
struct IntsOf<F16> {
    typedef I16 type;
};
template <>
NL_MEMBER F16 every<F16>(float x) {
    return (F16)_mm512_set1_ps(x);
}

NL_INLINE F16 fma(F16 a, F16 b, F16 c) { return (F16)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
NL_INLINE I16 dot(I16 n, B64 w, B64 a) {
    return (I16)_mm512_dpbusd_epi32((__m512i)n, (__m512i)w, (__m512i)a);
}
NL_INLINE I16 dot_words(I16 sum, S32 w, S32 a) {
    return (I16)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)w, (__m512i)a);
}
NL_INLINE F16 to_float(I16 v) { return __builtin_convertvector(v, F16); }
NL_INLINE I16 max(I16 a, I16 b) { return a > b ? a : b; }
NL_INLINE F16 max(F16 a, F16 b) { return (F16)_mm512_max_ps((__m512)a, (__m512)b); }  // b where either is NaN
NL_INLINE F16 min(F16 a, F16 b) { return (F16)_mm512_min_ps((__m512)a, (__m512)b); }
NL_INLINE I16 round_to_int(F16 v) { return (I16)_mm512_cvtps_epi32((__m512)v); }
NL_INLINE F16 load_wide(const float* p) { return (F16)_mm512_loadu_ps(p); }
NL_INLINE void store(float* p, F16 v) { _mm512_storeu_ps(p, (__m512)v); }
NL_INLINE F16 from_half_wide(const void* p) {
    return (F16)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
}
NL_INLINE B64 left(B64 v, int bits) { return (B64)((U32)v << bits); }
NL_INLINE B64 right(B64 v, int bits) { return (B64)((U32)v >> bits); }
NL_INLINE B64 all_fours_wide(const int8_t* p) {
    int32_t four;
    memcpy(&four, p, 4);
    return (B64)_mm512_set1_epi32(four);
}
NL_INLINE S32 all_twos_wide(const int16_t* p) { return (S32)all_fours_wide((const int8_t*)p); }
NL_INLINE B64 lookup(const int8_t* table, B64 index) {
    const __m512i wide = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)table));
    return (B64)_mm512_shuffle_epi8(wide, (__m512i)index);
}

// The same of two places side by side: 32 bytes, eight float16, eight bytes.
NL_INLINE B64 load_bytes(const uint8_t* p, const uint8_t* q) {
    const __m512i low = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i*)p));
    return (B64)_mm512_inserti64x4(low, _mm256_loadu_si256((const __m256i*)q), 1);
}
NL_INLINE F16 from_half(const uint8_t* p, const uint8_t* q) {
    const __m256i low = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i*)p));
    return (F16)_mm512_cvtph_ps(_mm256_inserti128_si256(low, _mm_loadu_si128((const __m128i*)q), 1));
}
NL_INLINE __m128i sixteen_bytes(const uint8_t* p, const uint8_t* q) {
    return _mm_unpacklo_epi64(_mm_loadl_epi64((const __m128i*)p), _mm_loadl_epi64((const __m128i*)q));
}
NL_INLINE I16 ints_from_bytes(const uint8_t* p, const uint8_t* q) {
    return (I16)_mm512_cvtepu8_epi32(sixteen_bytes(p, q));
}
NL_INLINE I16 ints_from_signed_bytes(const uint8_t* p, const uint8_t* q) {
    return (I16)_mm512_cvtepi8_epi32(sixteen_bytes(p, q));
}
NL_INLINE float sum_lanes(F16 v) { return _mm512_reduce_add_ps((__m512)v); }
NL_INLINE float max_lanes(F16 v) { return _mm512_reduce_max_ps((__m512)v); }
NL_INLINE F8 lower(F16 v) { return (F8)_mm512_castps512_ps256((__m512)v); }
NL_INLINE F8 upper(F16 v) { return (F8)_mm512_extracti64x4_epi64((__m512i)v, 1); }

}  // namespace NL_VARIANT
}  // namespace nl
