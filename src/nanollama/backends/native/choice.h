// Choosing among logits: what bias and penalties change in a row, and the highest of what comes out.
#pragma once
#include <math.h>

#include "search.h"

namespace nl {
namespace NL_VARIANT {

// The operations and their order are those of sampling/edits.py: the results are equal to the bit.
inline void edit(const NlEdits& edits, int64_t row, float* x) {
    const float *factors = edits.factors + 3 * row, repeat = factors[0], frequency = factors[1],
                presence = factors[2];
    for (int64_t i = edits.begins[row]; i < edits.begins[row + 1]; ++i) {
        const float times = edits.times[i], biased = x[edits.token_ids[i]] + edits.bias[i];
        const float repeated = biased > 0 ? biased / repeat : biased * repeat;
        x[edits.token_ids[i]] = times > 0 ? repeated - times * frequency - presence : biased;
    }
}

inline void choose(const NlChoice* choice, float* logits, int64_t stride, int64_t cols, int64_t begin,
                   int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
        float* x = logits + row * stride;
        if (choice->edits.begins) edit(choice->edits, row, x);
        float* values = choice->logits + row * choice->k;
        int32_t* ids = choice->ids + row * choice->k;
        bool has_nan;
        const int64_t found = top_k(x, cols, choice->k, values, ids, &has_nan);
        for (int64_t i = found; i < choice->k; ++i) values[i] = NAN, ids[i] = 0;
        if (has_nan) values[0] = NAN;
    }
}

}  // namespace NL_VARIANT
}  // namespace nl
