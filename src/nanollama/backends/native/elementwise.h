// What happens between the matmuls: quantization of activations, norms, rotation, gated activations.
#pragma once
#include <math.h>

#include "kernels.h"
#include "layout.h"
#include "simd.h"

namespace nl {
namespace NL_VARIANT {

// ---- the widest vectors there are
// ---------------------------------------------------------------------------

#ifdef NL_WIDE
typedef F16 Vec;
NL_INLINE Vec load_vec(const float* p) { return load_wide(p); }
NL_INLINE Vec load_vec(const uint16_t* half) { return from_half_wide(half); }
#else
typedef F8 Vec;
NL_INLINE Vec load_vec(const float* p) { return load(p); }
NL_INLINE Vec load_vec(const uint16_t* half) { return from_half(half); }
#endif
constexpr int kVecLanes = sizeof(Vec) / sizeof(float);

// ---- exp --------------------------------------------------------------------------------------------------

// e^x within 2 units in the last place: x = n ln 2 + r with |r| <= ln 2 / 2, the polynomial of Cephes' expf
// for e^r, and n added to the exponent. Results below the smallest normal number are 0, so that e^-inf is
// exactly 0; NaN stays NaN.
template <class F>
NL_INLINE F exp(F x) {
    typedef typename IntsOf<F>::type I;
    const F clamped = min(max(x, every<F>(-87.5f)), every<F>(88.8f));
    const I n = round_to_int(clamped * every<F>(1.44269504f));
    const F whole = to_float(n);
    // ln 2 in two parts, the first short enough that its product with n is exact without an fma.
    F r = fma(whole, every<F>(-0.693359375f), clamped);
    r = fma(whole, every<F>(2.12194440e-4f), r);
    F p = fma(every<F>(1.9875691500e-4f), r, every<F>(1.3981999507e-3f));
    p = fma(p, r, every<F>(8.3334519073e-3f));
    p = fma(p, r, every<F>(4.1665795894e-2f));
    p = fma(p, r, every<F>(1.6666665459e-1f));
    p = fma(p, r, every<F>(5.0000001201e-1f));
    p = fma(p, r * r, r + every<F>(1));
    const F scaled = (F)((I)p + (n << 23));
    const F low = x < every<F>(-87.33654f) ? F{} : scaled;
    const F high = x > every<F>(88.72283f) ? every<F>(INFINITY) : low;
    return x == x ? high : x;
}

// tanh through e^2x. The absolute error is below 1.2e-7; near 0 the relative error grows, which suits scores
// and gates.
template <class F>
NL_INLINE F tanh(F x) {
    return every<F>(1) - every<F>(2) / (exp(x + x) + every<F>(1));
}

template <class F>
NL_INLINE F silu(F x) {
    return x / (every<F>(1) + exp(-x));
}

// 0.5 x (1 + tanh(u)) = x / (1 + e^-2u), u = sqrt(2 / pi) (x + 0.044715 x^3)
template <class F>
NL_INLINE F gelu_tanh(F x) {
    const F u2 = every<F>(1.5957691216f) * x * fma(every<F>(0.044715f) * x, x, every<F>(1));
    return x / (every<F>(1) + exp(-u2));
}

// gpt-oss's gate and what it multiplies. A NaN passes through both.
constexpr float kSwigluLimit = 7, kSwigluSlope = 1.702f;

template <class F>
NL_INLINE F clamped_swish(F x) {
    x = min(every<F>(kSwigluLimit), x);
    return x / (every<F>(1) + exp(x * every<F>(-kSwigluSlope)));
}
template <class F>
NL_INLINE F clamped_up(F x) {
    return max(every<F>(-kSwigluLimit), min(every<F>(kSwigluLimit), x)) + every<F>(1);
}

// ---- quantization -----------------------------------------------------------------------------------------

// 32 floats to int8 within -127..127 with one scale. The largest magnitude is taken on the bits, where
// infinity and NaN are the largest: they end up in the scale, so that a broken activation shows instead of
// vanishing.
NL_INLINE void quantize_at(const NlActivations& to, int64_t row, int64_t block, const F8 (&x)[4]) {
    const int64_t at = row * to.cols + block * 32, number = row * (to.cols / 32) + block;
    float* meta = to.meta + number * 4;
    const I8 magnitude = all_int(0x7fffffff);
    const I8 largest =
        max(max((I8)x[0] & magnitude, (I8)x[1] & magnitude), max((I8)x[2] & magnitude, (I8)x[3] & magnitude));
    const int32_t largest_bits = max_lanes(largest);
    float amax;
    memcpy(&amax, &largest_bits, 4);
    // Below 1e-30 the inverse could overflow, and nothing that small survives the sums: it counts as zero.
    const bool usable = amax >= 1e-30f && amax < INFINITY;
    const F8 inverse = all(usable ? 127.0f / amax : 0.0f);
    const float scale = amax >= 1e-30f || amax != amax ? amax / 127.0f : 0.0f;
    I8 q[4];
    for (int i = 0; i < 4; ++i) q[i] = usable ? round_to_int(x[i] * inverse) : all_int(0);
    pack_bytes(to.quants + at, q[0], q[1], q[2], q[3]);
    const int32_t low = sum_lanes(q[0] + q[1]), high = sum_lanes(q[2] + q[3]);
    meta[0] = scale;
    meta[1] = scale * float(low + high);
    meta[2] = scale * float(low);
    meta[3] = scale * float(high);
    if (!to.words) return;
    I8 words[4];
    for (int i = 0; i < 4; ++i) {
        const F8 rest = fma(x[i], inverse, -to_float(q[i]));  // within half a step
        words[i] = q[i] * int32_t(kFineSteps) + (usable ? round_to_int(rest * all(kFineSteps)) : all_int(0));
        put_words(to.words + at + 8 * i, words[i]);
    }
    to.word_sums[number] =
        scale / kFineSteps * float(sum_lanes((words[0] + words[1]) + (words[2] + words[3])));
}

NL_INLINE void load_block(const float* p, F8 (&x)[4]) {
    for (int i = 0; i < 4; ++i) x[i] = load(p + 8 * i);
}
NL_INLINE void store_block(float* p, const F8 (&x)[4]) {
    for (int i = 0; i < 4; ++i) store(p + 8 * i, x[i]);
}

inline void quantize(const NlActivations* x, int64_t begin, int64_t end) {
    const int64_t blocks = x->cols / 32;
    for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t row = unit / blocks, block = unit % blocks;
        F8 v[4];
        load_block(x->values + row * x->stride + block * 32, v);
        quantize_at(*x, row, block, v);
    }
}

// ---- norm -------------------------------------------------------------------------------------------------

// Sum of squares of x (+ add, stored back to x), in four vectors of partial sums.
NL_INLINE float sum_squares(float* x, const float* add, int64_t cols) {
    F8 sums[4] = {all(0), all(0), all(0), all(0)};
    int64_t k = 0;
    for (; k + 32 <= cols; k += 32) {
        for (int i = 0; i < 4; ++i) {
            F8 v = load(x + k + 8 * i);
            if (add) store(x + k + 8 * i, v += load(add + k + 8 * i));
            sums[i] = fma(v, v, sums[i]);
        }
    }
    float rest = 0;
    for (; k < cols; ++k) {
        if (add) x[k] += add[k];
        rest += x[k] * x[k];
    }
    return sum_lanes((sums[0] + sums[1]) + (sums[2] + sums[3])) + rest;
}

inline void rms_norm(float* x, int64_t stride, int64_t cols, const float* add, int64_t add_stride,
                     const float* weight, float eps, float* out, int64_t out_stride,
                     const NlActivations* quantized, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
        float* from = x + row * stride;
        const float squares = sum_squares(from, add ? add + row * add_stride : nullptr, cols);
        const float factor = 1.0f / sqrtf(squares / float(cols) + eps);
        float* to = out ? out + row * out_stride : nullptr;
        int64_t k = 0;
        for (; k + 32 <= cols; k += 32) {
            F8 v[4];
            load_block(from + k, v);
            for (int i = 0; i < 4; ++i) {
                v[i] *= all(factor);
                if (weight) v[i] *= load(weight + k + 8 * i);
            }
            if (to) store_block(to + k, v);
            if (quantized) quantize_at(*quantized, row, k / 32, v);
        }
        for (; to && k < cols; ++k) to[k] = from[k] * factor * (weight ? weight[k] : 1.0f);
    }
}

// ---- sum
// ----------------------------------------------------------------------------------------------------

inline void add(float* x, int64_t stride, int64_t cols, const float* add, int64_t add_stride,
                const NlActivations* quantized, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
        float* to = x + row * stride;
        const float* from = add + row * add_stride;
        int64_t k = 0;
        for (; k + 32 <= cols; k += 32) {
            F8 v[4];
            load_block(to + k, v);
            for (int i = 0; i < 4; ++i) v[i] += load(from + k + 8 * i);
            store_block(to + k, v);
            if (quantized) quantize_at(*quantized, row, k / 32, v);
        }
        for (; k < cols; ++k) to[k] += from[k];
    }
}

// ---- rotation ---------------------------------------------------------------------------------------------

inline void rope(float* x, int64_t stride, int64_t heads, int64_t head_dim, int64_t rope_dim,
                 const int32_t* positions, const float* cos, const float* sin, int64_t begin, int64_t end) {
    const int64_t half = rope_dim / 2;
    for (int64_t row = begin; row < end; ++row) {
        const float *c = cos + positions[row] * half, *s = sin + positions[row] * half;
        for (int64_t head = 0; head < heads; ++head) {
            float *a = x + row * stride + head * head_dim, *b = a + half;
            int64_t i = 0;
            for (; i + 8 <= half; i += 8) {
                const F8 u = load(a + i), v = load(b + i), cs = load(c + i), sn = load(s + i);
                store(a + i, fma(u, cs, -(v * sn)));
                store(b + i, fma(v, cs, u * sn));
            }
            for (; i < half; ++i) {
                const float u = a[i], v = b[i];
                a[i] = u * c[i] - v * s[i];
                b[i] = v * c[i] + u * s[i];
            }
        }
    }
}

// ---- gated activation -------------------------------------------------------------------------------------

template <int activation>
NL_INLINE void activate_block(const float* gate, const float* up, float* values) {
    for (int i = 0; i < 32; i += kVecLanes) {
        const Vec x = load_vec(gate + i);
        Vec y;
        if constexpr (activation == NL_SILU) y = silu(x);
        if constexpr (activation == NL_GELU_TANH) y = gelu_tanh(x);
        if constexpr (activation == NL_CLAMPED_SWIGLU) y = clamped_swish(x);
        if (up) {
            const Vec factor = load_vec(up + i);
            y *= activation == NL_CLAMPED_SWIGLU ? clamped_up(factor) : factor;
        }
        store(values + i, y);
    }
}

// A few blocks are computed before the first is quantized: that waits for its largest value, and one block
// after the other would wait each time.
constexpr int64_t kBlocksAtOnce = 8;

template <int activation>
void activate_as(const float* gate, const float* up, int64_t stride, int64_t cols, float* out,
                 int64_t out_stride, const NlActivations* quantized, int64_t begin, int64_t end) {
    const int64_t blocks = (cols + 31) / 32;
    alignas(64) float values[kBlocksAtOnce * 32];
    for (int64_t unit = begin; unit < end;) {
        const int64_t row = unit / blocks, first = unit % blocks;
        const int64_t in_row = blocks - first < end - unit ? blocks - first : end - unit;
        const int64_t count = in_row < kBlocksAtOnce ? in_row : kBlocksAtOnce;
        const float *gates = gate + row * stride + first * 32,
                    *ups = up ? up + row * stride + first * 32 : nullptr;
        const int64_t left = cols - first * 32, whole = left / 32 < count ? left / 32 : count;
        for (int64_t b = 0; b < whole; ++b)
            activate_block<activation>(gates + b * 32, ups ? ups + b * 32 : nullptr, values + b * 32);
        if (whole < count) {  // the last of a row, where nothing is quantized
            float padded[2][32] = {};
            const size_t rest = size_t(left - whole * 32) * sizeof(float);
            memcpy(padded[0], gates + whole * 32, rest);
            if (ups) memcpy(padded[1], ups + whole * 32, rest);
            activate_block<activation>(padded[0], ups ? padded[1] : nullptr, values + whole * 32);
        }
        if (out)
            memcpy(out + row * out_stride + first * 32, values,
                   size_t(left < count * 32 ? left : count * 32) * sizeof(float));
        for (int64_t b = 0; quantized && b < count; ++b) {
            F8 v[4];
            load_block(values + b * 32, v);
            quantize_at(*quantized, row, first + b, v);
        }
        unit += count;
    }
}

inline void activate(int64_t activation, const float* gate, const float* up, int64_t stride, int64_t cols,
                     float* out, int64_t out_stride, const NlActivations* quantized, int64_t begin,
                     int64_t end) {
    const auto as = activation == NL_GELU_TANH        ? activate_as<NL_GELU_TANH>
                    : activation == NL_CLAMPED_SWIGLU ? activate_as<NL_CLAMPED_SWIGLU>
                                                      : activate_as<NL_SILU>;
    as(gate, up, stride, cols, out, out_stride, quantized, begin, end);
}

// ---- soft cap
// -----------------------------------------------------------------------------------------------

template <class F>
NL_INLINE F softcap(F x, float cap) {
    return every<F>(cap) * tanh(x / every<F>(cap));
}

inline void softcap(float* x, int64_t stride, int64_t cols, float cap, int64_t begin, int64_t end) {
    const int64_t blocks = (cols + 31) / 32;
    for (int64_t unit = begin; unit < end; ++unit) {
        float* at = x + unit / blocks * stride + unit % blocks * 32;
        const int64_t left = cols - unit % blocks * 32;
        int64_t i = 0;
        for (; i + kVecLanes <= left && i < 32; i += kVecLanes) store(at + i, softcap(load_vec(at + i), cap));
        for (; i < left && i < 32; ++i) at[i] = softcap(all(at[i]), cap)[0];
    }
}

}  // namespace NL_VARIANT
}  // namespace nl
