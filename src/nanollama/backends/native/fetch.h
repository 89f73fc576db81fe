// Fetching ahead what a step reads once: weights while it decodes, and the cache of keys and values.
#pragma once
#include <stdint.h>

namespace nl {

// Whether such lines go to L1 past L2. AMD's cores get a tenth more of their memory's bandwidth that way.
// Intel's get half of it: no more lines can be under way than L1 has buffers for, and L2 has three times as
// many. Known when the library is loaded (library.cpp).
extern const bool kPastL2;

// Lines at p, which will be read once, or (not `once`) by more than one tile.
template <bool once = true>
static inline __attribute__((always_inline)) void fetch(const void* p, int64_t bytes) {
    const char* at = (const char*)p;
    if (once && kPastL2)
        for (int64_t line = 0; line < bytes; line += 64) __builtin_prefetch(at + line, 0, 0);
    else
        for (int64_t line = 0; line < bytes; line += 64) __builtin_prefetch(at + line, 0, 2);
}

}  // namespace nl
