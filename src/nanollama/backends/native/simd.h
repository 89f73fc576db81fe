// Eight-lane vectors as the compiler's own types: what every variant shares. Included once per variant, after
// NL_VARIANT is defined, and followed by that variant's primitives (simd_portable.h, simd_avx2.h, ...), which
// must provide
//
//   kTileGroups                        weight groups per matmul tile: as many as the registers hold
//   F8 fma(a, b, c)                    a * b + c; rounded once or twice, as the machine has it
//   F8 from_half(p), to_half(p, v)     eight float16 at p
//   F8 from_bfloat16(p)                eight bfloat16
//   I8 ints_from_bytes(p)              eight unsigned bytes; ints_from_signed_bytes for signed ones
//   B32 lookup(table, index)           bytes of a table of 16
//   I8 round_to_int(v)                 to nearest even, |v| < 2^22
//   pack_bytes(p, a, b, c, d)          32 integers within -128..127 to bytes, in order
//   Narrow dot(w, a), dot(n, w, a)     (n +) sums of products of unsigned weights and signed activations
//   narrow_room(w)                     how many dots of weights up to w a Narrow holds without overflow
//   I8 widen(n), widen(n, scale)       lane sums (times a signed 8-bit scale per row, a RowScale)
//   I8 dot_signed(sum, w, a)           sum + products of signed weights; + kSignedBias * sum of activations
//   I8 dot_words(sum, w, a)            sum + products of words, two to a lane
//
// A variant that defines NL_WIDE has vectors of sixteen lanes as well (F16, I16, B64), for tile_wide.h.
// One that defines NL_PANELS has few registers, for panel.h.
#pragma once
#include <stdint.h>
#include <string.h>

#define NL_INLINE static inline __attribute__((always_inline))
#define NL_MEMBER inline __attribute__((always_inline))

namespace nl {
namespace NL_VARIANT {

typedef float F8 __attribute__((vector_size(32)));
typedef int32_t I8 __attribute__((vector_size(32)));
typedef int16_t S16 __attribute__((vector_size(32)));
typedef uint16_t U16 __attribute__((vector_size(32)));
typedef uint8_t B32 __attribute__((vector_size(32)));

NL_INLINE F8 load(const float* p) {
    F8 v;
    memcpy(&v, p, 32);
    return v;
}
NL_INLINE void store(float* p, F8 v) { memcpy(p, &v, 32); }
NL_INLINE B32 load_bytes(const void* p) {
    B32 v;
    memcpy(&v, p, 32);
    return v;
}
NL_INLINE F8 all(float x) { return F8{x, x, x, x, x, x, x, x}; }
// The same where the number of lanes is a template's.
template <class F>
NL_INLINE F every(float x);
template <>
NL_MEMBER F8 every<F8>(float x) {
    return all(x);
}
template <class F>
struct IntsOf;
template <>
struct IntsOf<F8> {
    typedef I8 type;
};
NL_INLINE I8 all_int(int32_t x) { return I8{x, x, x, x, x, x, x, x}; }
NL_INLINE B32 all_bytes(uint8_t x) { return (B32)all_int(int32_t(x * 0x01010101u)); }

// Bytes shifted in pairs, for what is masked afterwards: no processor shifts single bytes.
NL_INLINE B32 left(B32 v, int bits) { return (B32)((U16)v << bits); }
NL_INLINE B32 right(B32 v, int bits) { return (B32)((U16)v >> bits); }

// Bytes as words: those with even and those with odd numbers.
template <bool is_signed, class Bytes, class Words>
NL_INLINE void to_words(Bytes v, Words& even, Words& odd) {
    even = is_signed ? (Words)v << 8 >> 8 : (Words)v & 255;
    odd = is_signed ? (Words)v >> 8 : (Words)v >> 8 & 255;
}

// Eight integers as words, where 0, 2 and 1, 3 of each four meet the words of to_words.
NL_INLINE void put_words(int16_t* p, I8 v) {
    typedef int16_t Eight __attribute__((vector_size(16)));
    const Eight words = __builtin_convertvector((I8{v[0], v[2], v[1], v[3], v[4], v[6], v[5], v[7]}), Eight);
    memcpy(p, &words, 16);
}

// Four consecutive activation bytes in every lane, or two words.
NL_INLINE B32 all_fours(const int8_t* p) {
    int32_t four;
    memcpy(&four, p, 4);
    return (B32)all_int(four);
}

NL_INLINE S16 all_twos(const int16_t* p) { return (S16)all_fours((const int8_t*)p); }

NL_INLINE F8 to_float(I8 v) { return __builtin_convertvector(v, F8); }
NL_INLINE F8 max(F8 a, F8 b) { return a > b ? a : b; }  // b where either is NaN
NL_INLINE F8 min(F8 a, F8 b) { return a < b ? a : b; }
NL_INLINE I8 max(I8 a, I8 b) { return a > b ? a : b; }

// What goes over the lanes of a vector is half done with one operation on its halves.
typedef float F4 __attribute__((vector_size(16)));
typedef int32_t I4 __attribute__((vector_size(16)));
template <class Half, class Whole>
NL_INLINE void split(Whole v, Half& low, Half& high) {
    memcpy(&low, &v, 16);
    memcpy(&high, (const char*)&v + 16, 16);
}

// The order of a horizontal sum is part of a result: pairs of lanes four apart, then two, then one.
template <class Half, class Whole>
NL_INLINE auto sum_of_halves(Whole v) {
    Half low, high;
    split(v, low, high);
    low += high;
    return (low[0] + low[2]) + (low[1] + low[3]);
}
NL_INLINE float sum_lanes(F8 v) { return sum_of_halves<F4>(v); }
NL_INLINE int32_t sum_lanes(I8 v) { return sum_of_halves<I4>(v); }
NL_INLINE float max_lanes(F8 v) {
    float best = v[0];
    for (int i = 1; i < 8; ++i) best = v[i] > best ? v[i] : best;
    return best;
}
NL_INLINE int32_t max_lanes(I8 v) {
    I4 low, high;
    split(v, low, high);
    low = low > high ? low : high;
    const int32_t even = low[0] > low[2] ? low[0] : low[2], odd = low[1] > low[3] ? low[1] : low[3];
    return even > odd ? even : odd;
}

}  // namespace NL_VARIANT
}  // namespace nl
