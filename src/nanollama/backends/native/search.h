// Argmax and top-k over logits: one pass, eight at a time, with a cheap test that almost always says no.
#pragma once
#include <math.h>

#include "simd.h"

namespace nl {
namespace NL_VARIANT {

NL_INLINE bool any(I8 mask) {
    int64_t words[4];
    memcpy(words, &mask, 32);
    return (words[0] | words[1] | words[2] | words[3]) != 0;
}

inline int64_t argmax(const float* x, int64_t begin, int64_t end, float* value) {
    float best = -INFINITY;
    int64_t index = -1;
    for (int64_t i = begin; i < end;) {
        if (index >= 0 && i + 32 <= end) {
            const F8 top = all(best);
            if (!any((load(x + i) > top) | (load(x + i + 8) > top) | (load(x + i + 16) > top) |
                     (load(x + i + 24) > top))) {
                i += 32;
                continue;
            }
        }
        const int64_t stop = i + 32 < end ? i + 32 : end;
        for (; i < stop; ++i)
            if (x[i] > best || (index < 0 && x[i] == best)) best = x[i], index = i;
    }
    *value = best;
    return index;
}

// The candidate that leaves first: the smaller value, of equals the later one.
NL_INLINE bool leaves_before(float a, int32_t ia, float b, int32_t ib) {
    return a < b || (a == b && ia > ib);
}

// A binary heap with the next to leave at the root.
NL_INLINE void sift_down(float* values, int32_t* indices, int64_t root, int64_t count) {
    const float value = values[root];
    const int32_t index = indices[root];
    for (;;) {
        int64_t child = 2 * root + 1;
        if (child >= count) break;
        if (child + 1 < count &&
            leaves_before(values[child + 1], indices[child + 1], values[child], indices[child]))
            ++child;
        if (!leaves_before(values[child], indices[child], value, index)) break;
        values[root] = values[child];
        indices[root] = indices[child];
        root = child;
    }
    values[root] = value;
    indices[root] = index;
}

inline int64_t top_k(const float* x, int64_t begin, int64_t end, int64_t k, float* values, int32_t* indices) {
    int64_t count = 0, i = begin;
    for (; i < end && count < k; ++i) {
        if (x[i] != x[i]) continue;
        values[count] = x[i];
        indices[count++] = int32_t(i);
    }
    for (int64_t root = count / 2 - 1; root >= 0; --root) sift_down(values, indices, root, count);
    while (i < end && count > 0) {
        if (i + 8 <= end && !any(load(x + i) > all(values[0]))) {
            i += 8;
            continue;
        }
        const int64_t stop = i + 8 < end ? i + 8 : end;
        for (; i < stop; ++i) {
            if (!(x[i] > values[0])) continue;
            values[0] = x[i];
            indices[0] = int32_t(i);
            sift_down(values, indices, 0, count);
        }
    }
    for (int64_t last = count - 1; last > 0;
         --last) {  // heap sort: the root, which leaves first, goes to the end
        const float value = values[0];
        const int32_t index = indices[0];
        values[0] = values[last];
        indices[0] = indices[last];
        values[last] = value;
        indices[last] = index;
        sift_down(values, indices, 0, last);
    }
    return count;
}

}  // namespace NL_VARIANT
}  // namespace nl
