// Fetching ahead what a step reads once: weights while it decodes, and the cache of keys and values.
#pragma once
#include <stdint.h>

namespace nl {

// Whether such lines go to L1 past L2. AMD's cores since Zen 5 get a tenth more of their memory's bandwidth
// that way. Zen 4 loses a fifth: its L1 is a third smaller. Intel's get half: no more lines can be under way
// than L1 has buffers for, and L2 has three times as many. Known when the library is loaded (library.cpp).
extern const bool kPastL2;

// How far ahead of their use: what has to come from memory meanwhile, and not so far that it is gone again.
template <bool past_l2>
constexpr int64_t kFetchAhead = past_l2 ? 16 * 1024 : 8 * 1024;

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
