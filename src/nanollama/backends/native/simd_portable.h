// Primitives in plain C++: correct on any processor, and vectorised as far as the compiler can for its baseline.
#pragma once
#include "half.h"
#include "simd.h"

namespace nl {
namespace NL_VARIANT {

NL_INLINE F8 fma(F8 a, F8 b, F8 c) { return a * b + c; }

NL_INLINE F8 from_half(const void* p) {
    F8 v;
    for (int i = 0; i < 8; ++i) v[i] = float_of_half(load_u16((const uint8_t*)p + 2 * i));
    return v;
}
NL_INLINE void to_half(uint16_t* p, F8 v) {
    for (int i = 0; i < 8; ++i) p[i] = half_of_float(v[i]);
}
NL_INLINE I8 ints_from_bytes(const uint8_t* p) {
    I8 v;
    for (int i = 0; i < 8; ++i) v[i] = p[i];
    return v;
}
NL_INLINE I8 ints_from_signed_bytes(const uint8_t* p) {
    I8 v;
    for (int i = 0; i < 8; ++i) v[i] = int8_t(p[i]);
    return v;
}
NL_INLINE F8 from_brain(const void* p) {
    I8 bits;
    for (int i = 0; i < 8; ++i) bits[i] = int32_t(uint32_t(load_u16((const uint8_t*)p + 2 * i)) << 16);
    return (F8)bits;
}

// Adding 1.5 * 2^23 leaves the rounded integer in the low mantissa bits.
NL_INLINE I8 round_to_int(F8 v) { return (I8)(v + all(12582912.0f)) - (I8)all(12582912.0f); }

NL_INLINE void pack_bytes(int8_t* p, I8 a, I8 b, I8 c, I8 d) {
    for (int i = 0; i < 8; ++i) {
        p[i] = int8_t(a[i]);
        p[8 + i] = int8_t(b[i]);
        p[16 + i] = int8_t(c[i]);
        p[24 + i] = int8_t(d[i]);
    }
}

NL_INLINE B32 lookup(const int8_t* table, B32 index) {
    B32 v;
    for (int i = 0; i < 32; ++i) v[i] = uint8_t(table[index[i]]);
    return v;
}

// Products of the even and the odd bytes fit int16 (255 * 127 = 32385); they are added up in 32 bits, which never overflows.
typedef I8 Narrow;
constexpr int narrow_room(int) { return 1 << 16; }

NL_INLINE I8 add_pairs(S16 products) { return ((I8)products << 16 >> 16) + ((I8)products >> 16); }
NL_INLINE S16 even_bytes(B32 v) { return (S16)v << 8 >> 8; }
NL_INLINE S16 odd_bytes(B32 v) { return (S16)v >> 8; }

NL_INLINE Narrow dot(B32 w, B32 a) {
    const S16 even = (S16)((U16)w & 255), odd = (S16)((U16)w >> 8);
    return add_pairs(even * even_bytes(a)) + add_pairs(odd * odd_bytes(a));
}
NL_INLINE Narrow dot(Narrow n, B32 w, B32 a) { return n + dot(w, a); }
NL_INLINE I8 widen(Narrow n) { return n; }

typedef I8 RowScale;
NL_INLINE RowScale row_scale(const uint8_t* p) { return ints_from_signed_bytes(p); }
NL_INLINE I8 widen(Narrow n, RowScale scale) { return n * scale; }

constexpr float kSignedBias = 0;
NL_INLINE I8 dot_signed(I8 sum, B32 w, B32 a) {
    return sum + add_pairs(even_bytes(w) * even_bytes(a)) + add_pairs(odd_bytes(w) * odd_bytes(a));
}

}  // namespace NL_VARIANT
}  // namespace nl
