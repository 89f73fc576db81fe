// The paged cache of keys and values: storing new tokens, and where those of a sequence lie.
//
// Both products of attention read panels of 16 lanes: 16 tokens of one dim for q.k, 16 dims of one token for
// p.v. Keys and values are stored in the order in which these read them (kernels.h, NlCache).
#pragma once
#include <float.h>

#include "elementwise.h"

namespace nl {
namespace NL_VARIANT {

constexpr int64_t kLanes = 16;  // of a panel

// The two types of number in a cache, float16 and float32: the largest, and how eight are written.
constexpr float largest_of(const uint16_t*) { return 65504.0f; }
constexpr float largest_of(const float*) { return FLT_MAX; }
NL_INLINE void put(uint16_t* p, F8 v) { to_half(p, v); }
NL_INLINE void put(float* p, F8 v) { store(p, v); }

template <class Number>
void store_numbers(const NlCache* cache, const float* key, const float* value, int64_t stride,
                   const int64_t* slots, int64_t begin, int64_t end) {
    const int64_t dim = cache->head_dim, block_size = cache->block_size;
    // What is beyond the type is cut to its largest number: infinity would turn into NaN later.
    const F8 largest = all(largest_of((const Number*)nullptr));
    for (int64_t row = begin; row < end; ++row) {
        const int64_t block = slots[row] / block_size, token = slots[row] % block_size;
        for (int64_t head = 0; head < cache->kv_heads; ++head) {
            const int64_t page = block * cache->block_stride + head * block_size * dim;
            const float *k = key + row * stride + head * dim, *v = value + row * stride + head * dim;
            Number* keys = (Number*)cache->keys + page + token / kLanes * kLanes * dim + token % kLanes;
            Number* values = (Number*)cache->values + page + token * kLanes;
            for (int64_t d = 0; d < dim; d += 8) {
                Number numbers[8];
                put(numbers, min(max(load(k + d), -largest), largest));
                for (int64_t i = 0; i < 8; ++i) keys[(d + i) * kLanes] = numbers[i];
                put(values + d / kLanes * block_size * kLanes + d % kLanes,
                    min(max(load(v + d), -largest), largest));
            }
        }
    }
}

inline void store_kv(const NlCache* cache, const float* key, const float* value, int64_t stride,
                     const int64_t* slots, int64_t begin, int64_t end) {
    if (cache->is_float32) return store_numbers<float>(cache, key, value, stride, slots, begin, end);
    store_numbers<uint16_t>(cache, key, value, stride, slots, begin, end);
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
