// Integer products for AVX-512 VNNI: four unsigned by signed products into each 32-bit lane, with no bound to
// watch.
#pragma once
#include "simd_x86.h"

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

}  // namespace NL_VARIANT
}  // namespace nl
