// The two ends of a mixture of experts: which of them a row goes to, and the weighted sum of what they give.
#pragma once
#include "elementwise.h"
#include "search.h"

namespace nl {
namespace NL_VARIANT {

// Sum of e^(x - maximum); NaN if one of them is.
NL_INLINE float sum_exp(const float* x, int64_t count, float maximum) {
    F8 sum = all(0);
    for (int64_t i = 0; i < count; i += 8) {
        F8 v = all(-INFINITY);
        if (i + 8 <= count)
            v = load(x + i);
        else
            for (int64_t j = i; j < count; ++j) v[j - i] = x[j];
        sum += exp(v - all(maximum));
    }
    return sum_lanes(sum);
}

inline void route(const NlRouting* routing, const float* scores, int64_t stride, int64_t begin, int64_t end) {
    const int64_t k = routing->per_token;
    for (int64_t row = begin; row < end; ++row) {
        const float* x = scores + row * stride;
        int32_t* chosen = routing->chosen + row * k;
        float* shares = routing->shares + row * k;
        bool has_nan;
        const int64_t found = top_k(x, routing->experts, k, shares, chosen, &has_nan);
        for (int64_t i = found; i < k; ++i) chosen[i] = 0, shares[i] = NAN;
        const float maximum = shares[0];
        // The sum over all is NaN where a score is, chosen or not.
        const float total = routing->normalized && !has_nan ? sum_exp(shares, k, maximum)
                                                            : sum_exp(x, routing->experts, maximum);
        for (int64_t i = 0; i < k; ++i) shares[i] = exp(all(shares[i] - maximum))[0] / total;
    }
}

inline void combine(const NlRouting* routing, const float* x, int64_t stride, int64_t cols, float* out,
                    int64_t out_stride, int64_t begin, int64_t end) {
    const int64_t per_token = routing->per_token;
    for (int64_t row = begin; row < end; ++row) {
        float* to = out + row * out_stride;
        for (int64_t j = 0; j < per_token; ++j) {
            const float share = routing->shares[row * per_token + j];
            const float* from = x + routing->places[row * per_token + j] * stride;
            int64_t k = 0;
            for (; k + 8 <= cols; k += 8) {
                const F8 before = j == 0 ? all(0) : load(to + k);
                store(to + k, fma(all(share), load(from + k), before));
            }
            for (; k < cols; ++k) to[k] = (j == 0 ? 0 : to[k]) + share * from[k];
        }
    }
}

}  // namespace NL_VARIANT
}  // namespace nl
