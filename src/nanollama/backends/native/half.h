// Scalar float16 and bfloat16, exact, for the code that is not worth a vector.
#pragma once
#include <stdint.h>
#include <string.h>

namespace nl {

static inline float float_of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static inline uint32_t bits_of_float(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

// Moving the 15 bits up by 13 leaves an exponent that is 112 too small, subnormals included: one exact
// product mends both.
static inline float float_of_half(uint16_t half) {
    const uint32_t magnitude = (half & 0x7fffu) << 13;
    const float scaled = float_of_bits(magnitude) * float_of_bits(0x77800000u);  // 2^112
    const uint32_t special = (half & 0x7c00u) == 0x7c00u ? 0x7f800000u : 0u;     // infinity and NaN
    return float_of_bits(bits_of_float(scaled) | special | (half & 0x8000u) << 16);
}

// Rounds to nearest even. The caller clamps to the largest finite half, 65504, where infinity is not wanted.
static inline uint16_t half_of_float(float value) {
    const uint32_t bits = bits_of_float(value), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return uint16_t(sign | 0x7e00u);
    if (magnitude >= 0x477ff000u) return uint16_t(sign | 0x7c00u);  // rounds to 65536 or more
    if (magnitude <
        0x38800000u) {  // a subnormal half: adding 0.5 shifts the value to the end of the mantissa, rounded
        const float shifted = float_of_bits(magnitude) + 0.5f;
        return uint16_t(sign | (bits_of_float(shifted) - 0x3f000000u));
    }
    const uint32_t odd = magnitude >> 13 & 1u;
    return uint16_t(sign | ((magnitude + 0xfffu + odd - 0x38000000u) >> 13));
}

static inline uint16_t load_u16(const uint8_t* p) {
    uint16_t value;
    memcpy(&value, p, 2);
    return value;
}

static inline uint32_t load_u32(const uint8_t* p) {
    uint32_t value;
    memcpy(&value, p, 4);
    return value;
}

static inline void store_u16(uint8_t* p, uint16_t value) { memcpy(p, &value, 2); }
static inline void store_u32(uint8_t* p, uint32_t value) { memcpy(p, &value, 4); }

}  // namespace nl
