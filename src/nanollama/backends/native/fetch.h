// Fetching ahead what a step reads once: weights while it decodes, and the cache of keys and values.
#pragma once
#include <stdint.h>

namespace nl {

// Whether such lines go to L1 past L2. AMD's cores get a tenth more of their memory's bandwidth that way.
// Intel's get half of it: no more lines can be under way than L1 has buffers for, and L2 has three times as
// many. Known when the library is loaded (library.cpp).
extern const bool kPastL2;

// The lines at p: to L1 past L2, or to L2.
template <bool past_l2>
static inline __attribute__((always_inline)) void fetch(const void* p, int64_t bytes) {
    for (int64_t line = 0; line < bytes; line += 64)
        __builtin_prefetch((const char*)p + line, 0, past_l2 ? 0 : 2);
}

// The same for lines that will be read once, on any processor.
static inline __attribute__((always_inline)) void fetch_once(const void* p, int64_t bytes) {
    if (kPastL2)
        fetch<true>(p, bytes);
    else
        fetch<false>(p, bytes);
}

}  // namespace nl
