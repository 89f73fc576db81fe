// Primitives in plain C++: correct on any processor, and vectorised as far as the compiler can for its
// baseline.
#pragma once
#include "half.h"
#include "simd.h"

namespace nl {
namespace NL_VARIANT {

constexpr int kTileGroups = 1;  // a vector is several registers here: more would spill

NL_INLINE F8 fma(F8 a, F8 b, F8 c) { return a * b + c; }

// Eight integers of another size, as 32-bit lanes.
template <class Integer>
NL_INLINE I8 ints_from(const void* p) {
    typedef Integer Narrower __attribute__((vector_size(8 * sizeof(Integer))));
    Narrower v;
    memcpy(&v, p, sizeof v);
    return __builtin_convertvector(v, I8);
}
NL_INLINE I8 ints_from_bytes(const uint8_t* p) { return ints_from<uint8_t>(p); }
NL_INLINE I8 ints_from_signed_bytes(const uint8_t* p) { return ints_from<int8_t>(p); }

NL_INLINE F8 from_half(const void* p) {  // float_of_half in lanes
    const I8 half = ints_from<uint16_t>(p), exponent = half & 0x7c00;
    const F8 scaled = (F8)((half & 0x7fff) << 13) * (F8)all_int(0x77800000);
    const I8 special = exponent == 0x7c00 ? all_int(0x7f800000) : all_int(0);
    return (F8)((I8)scaled | special | (half & 0x8000) << 16);
}
NL_INLINE void to_half(uint16_t* p, F8 v) {
    for (int i = 0; i < 8; ++i) p[i] = half_of_float(v[i]);
}
NL_INLINE F8 from_bfloat16(const void* p) { return (F8)(ints_from<uint16_t>(p) << 16); }

// Adding 1.5 * 2^23 leaves the rounded integer in the low mantissa bits.
NL_INLINE I8 round_to_int(F8 v) { return (I8)(v + all(12582912.0f)) - (I8)all(12582912.0f); }

NL_INLINE void pack_bytes(int8_t* p, I8 a, I8 b, I8 c, I8 d) {
    typedef int8_t Bytes __attribute__((vector_size(8)));
    const Bytes bytes[4] = {__builtin_convertvector(a, Bytes), __builtin_convertvector(b, Bytes),
                            __builtin_convertvector(c, Bytes), __builtin_convertvector(d, Bytes)};
    memcpy(p, bytes, 32);
}

// Not inlined: without a shuffle instruction it is 32 loads, and unrolled tiles would hold hundreds of
// copies.
__attribute__((noinline)) static B32 lookup(const int8_t* table, B32 index) {
    B32 v;
    for (int i = 0; i < 32; ++i) v[i] = uint8_t(table[index[i]]);
    return v;
}

// Products of the even and the odd bytes fit int16 (255 * 127 = 32385); they are added up in 32 bits, which
// never overflows.
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

NL_INLINE I8 dot_words(I8 sum, S16 w, S16 a) {
    const I8 x = (I8)w, y = (I8)a;
    return sum + (x << 16 >> 16) * (y << 16 >> 16) + (x >> 16) * (y >> 16);
}

constexpr float kSignedBias = 0;
NL_INLINE I8 dot_signed(I8 sum, B32 w, B32 a) {
    return sum + add_pairs(even_bytes(w) * even_bytes(a)) + add_pairs(odd_bytes(w) * odd_bytes(a));
}

}  // namespace NL_VARIANT
}  // namespace nl
