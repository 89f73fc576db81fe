// The k largest of a row: one pass, 32 numbers at a time, with a cheap test that almost always says no.
#pragma once
#include "simd.h"

namespace nl {
namespace NL_VARIANT {

NL_INLINE bool any(I8 mask) {
    int64_t words[4];
    memcpy(words, &mask, 32);
    return (words[0] | words[1] | words[2] | words[3]) != 0;
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

// The k largest of x [size], descending, equals in index order. NaN is left out; `has_nan` says if there was
// one. Returns how many were found.
inline int64_t top_k(const float* x, int64_t size, int64_t k, float* values, int32_t* indices,
                     bool* has_nan) {
    int64_t count = 0, i = 0;
    *has_nan = false;
    for (; i < size && count < k; ++i) {
        if (x[i] != x[i]) {
            *has_nan = true;
            continue;
        }
        values[count] = x[i];
        indices[count++] = int32_t(i);
    }
    for (int64_t root = count / 2 - 1; root >= 0; --root) sift_down(values, indices, root, count);
    I8 not_numbers = all_int(0);
    while (i < size && count > 0) {
        if (i + 32 <= size) {
            const F8 bound = all(values[0]);
            I8 larger = all_int(0);
            for (int j = 0; j < 32; j += 8) {
                const F8 v = load(x + i + j);
                larger |= v > bound;
                not_numbers |= v != v;
            }
            if (!any(larger)) {
                i += 32;
                continue;
            }
        }
        const int64_t stop = i + 32 < size ? i + 32 : size;
        for (; i < stop; ++i) {
            *has_nan |= x[i] != x[i];
            if (!(x[i] > values[0])) continue;
            values[0] = x[i];
            indices[0] = int32_t(i);
            sift_down(values, indices, 0, count);
        }
    }
    *has_nan |= any(not_numbers);
    // Heap sort: the root, which leaves first, goes to the end.
    for (int64_t last = count - 1; last > 0; --last) {
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
