// The paged cache of keys and values: storing new tokens, and where those of a sequence lie.
//
// Both products of attention read panels of 16 lanes: 16 tokens of one dim for q.k, 16 dims of one token for
// p.v. Keys and values are stored in the order in which these read them (kernels.h, NlCache).
#pragma once
#include "elementwise.h"

namespace nl {
namespace NL_VARIANT {

constexpr int64_t kLanes = 16;  // of a panel

inline void store_kv(const NlCache* cache, const float* key, const float* value, int64_t stride,
                     const int64_t* slots, int64_t begin, int64_t end) {
    const int64_t dim = cache->head_dim, block_size = cache->block_size;
    // A key beyond float16 is cut to its largest number: infinity would turn into NaN later.
    const F8 largest = all(65504.0f);
    for (int64_t row = begin; row < end; ++row) {
        if (slots[row] < 0) continue;
        const int64_t block = slots[row] / block_size, token = slots[row] % block_size;
        for (int64_t head = 0; head < cache->kv_heads; ++head) {
            const int64_t page = block * cache->block_stride + head * block_size * dim;
            const float *k = key + row * stride + head * dim, *v = value + row * stride + head * dim;
            uint16_t* keys = cache->keys + page + token / kLanes * kLanes * dim + token % kLanes;
            uint16_t* values = cache->values + page + token * kLanes;
            for (int64_t d = 0; d < dim; d += 8) {
                uint16_t halves[8];
                to_half(halves, min(max(load(k + d), -largest), largest));
                for (int64_t i = 0; i < 8; ++i) keys[(d + i) * kLanes] = halves[i];
                to_half(values + d / kLanes * block_size * kLanes + d % kLanes,
                        min(max(load(v + d), -largest), largest));
            }
        }
    }
}

// Where one head's keys and values of one sequence lie.
struct Pages {
    const NlCache& cache;
    const int32_t* table;
    int64_t kv_head;

    // Where the head's keys or values of the block that holds `token` begin.
    NL_MEMBER int64_t page(int64_t token) const {
        const int64_t block = table[token / cache.block_size];
        return block * cache.block_stride + kv_head * cache.block_size * cache.head_dim;
    }

    // Where the panel of keys that begins with `token` lies.
    NL_MEMBER int64_t keys(int64_t token) const {
        return page(token) + token % cache.block_size * cache.head_dim;
    }
};

// The tokens [from, to) whose keys this thread will probably need next. Decoding waits for memory: fetching
// them while values are summed keeps it busy.
struct Upcoming {
    Pages pages;
    int64_t from, to;
};

}  // namespace NL_VARIANT
}  // namespace nl
