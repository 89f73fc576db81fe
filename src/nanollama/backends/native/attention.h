// Attention over the paged cache: grouped heads and neighbouring queries share one pass over keys and values.
//
// Both products are the same small kernel: M rows of scalars times a panel of 16 lanes. In q.k the lanes are
// 16 tokens and the kernel runs over dims; in p.v the lanes are 16 dims and it runs over tokens. No
// horizontal sums, no transposes.
//
// The cache is taken in spans of 256 tokens, counted from token 0. Within a span the softmax is exact (all
// scores first); spans are merged in order with the usual rescaling. A row goes through the same operations
// whether it is decoded alone, with its spans spread over threads and merged later, or in the middle of a
// prefill tile: the result is the same to the bit.
#pragma once
#include "elementwise.h"
#include "layout.h"

namespace nl {
namespace NL_VARIANT {

constexpr int64_t kLanes = 16;
constexpr int64_t kFetchAheadKeys = 2048;  // elements, 4 KiB

inline void store_kv(const NlCache* cache, const float* key, const float* value, int64_t stride,
                     const int64_t* slots, int64_t begin, int64_t end) {
    const int64_t dim = cache->head_dim, block_size = cache->block_size;
    const F8 largest = all(
        65504.0f);  // a key beyond float16 is cut to its largest number: infinity would turn into NaN later
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

template <int M>
NL_INLINE void add_scaled(const uint16_t* lanes, int64_t i, const float* const (&x)[M], F8 (&acc)[M][2]) {
    const F8 first = from_half(lanes), second = from_half(lanes + 8);
    for (int m = 0; m < M; ++m) {
        const F8 scalar = all(x[m][i]);
        acc[m][0] = fma(first, scalar, acc[m][0]);
        acc[m][1] = fma(second, scalar, acc[m][1]);
    }
}

// acc[m] += sum over i < n of x[m][i] * panel[i]. Meanwhile as many bytes at `next` and `after` (unless null)
// are fetched: line by line between the sums, since a burst of prefetches would stall the loads behind it.
template <int M>
NL_INLINE void add_panel(const uint16_t* panel, int64_t n, const float* const (&x)[M], F8 (&acc)[M][2],
                         const uint16_t* next, const uint16_t* after) {
    int64_t i = 0;
    for (; i + 2 <= n; i += 2) {
        __builtin_prefetch(next + i * kLanes, 0, 2);
        if (after) __builtin_prefetch(after + i * kLanes, 0, 2);
        add_scaled<M>(panel + i * kLanes, i, x, acc);
        add_scaled<M>(panel + (i + 1) * kLanes, i + 1, x, acc);
    }
    if (i < n) add_scaled<M>(panel + i * kLanes, i, x, acc);
}

// One row's unfinished result: sum of e^(score - maximum) * value, and of e^(score - maximum). total 0:
// nothing seen yet.
struct RowState {
    float* acc;  // [head_dim]
    float maximum, total;
};

// What a merge multiplies either side with.
struct Rescale {
    float before, now;
};

NL_INLINE Rescale merge(RowState& state, float maximum, float total) {
    if (state.total == 0) {
        state.maximum = maximum;
        state.total = total;
        return {0, 1};
    }
    const float larger = state.maximum > maximum ? state.maximum : maximum;
    const Rescale rescale = {exp(all(state.maximum - larger))[0], exp(all(maximum - larger))[0]};
    state.maximum = larger;
    state.total = state.total * rescale.before + total * rescale.now;
    return rescale;
}

NL_INLINE F8 merged(F8 before, F8 now, const Rescale& rescale) {
    return rescale.before == 0 ? now * all(rescale.now)
                               : fma(before, all(rescale.before), now * all(rescale.now));
}

// M rows (a query and a head each) against one span.
template <int M>
struct SpanTile {
    const float* query[M];
    RowState* state[M];
    int64_t low[M], high[M];  // visible tokens, clipped to the span

    void run(const NlAttention& job, const int32_t* table, int64_t kv_head) {
        int64_t from = low[0], to = high[0];
        for (int m = 1; m < M; ++m) {
            from = low[m] < from ? low[m] : from;
            to = high[m] > to ? high[m] : to;
        }
        from = from / kLanes * kLanes;
        if (from >= to) return;
        alignas(32) float scores[M][kSpan];
        float maximum[M], total[M];
        score(job, table, kv_head, from, to, scores, maximum);
        for (int m = 0; m < M; ++m) total[m] = weigh(scores[m], maximum[m], to - from);
        Rescale rescale[M];
        for (int m = 0; m < M; ++m)
            rescale[m] = low[m] < high[m] ? merge(*state[m], maximum[m], total[m]) : Rescale{1, 0};
        add_values(job, table, kv_head, from, to, scores, rescale);
    }

    // Scores of the 16 tokens whose keys lie at cache.keys + at; -inf where a row does not see the token.
    NL_INLINE void score_panel(const NlAttention& job, int64_t at, int64_t ahead, int64_t token,
                               const float* const (&rows)[M], const int64_t (&low)[M],
                               const int64_t (&high)[M], F8 (&acc)[M][2]) {
        for (int m = 0; m < M; ++m) acc[m][0] = acc[m][1] = all(0);
        // The values of these tokens are needed after the scores. They take as much room as the keys, at the
        // same place of their page.
        const NlCache& cache = job.cache;
        add_panel<M>(cache.keys + at, cache.head_dim, rows, acc, cache.keys + ahead, cache.values + at);
        bool all_seen = true;
        for (int m = 0; m < M; ++m) all_seen &= low[m] <= token && token + kLanes <= high[m];
        for (int m = 0; m < M; ++m) {
            for (int h = 0; h < 2; ++h) {
                F8 s = acc[m][h] * all(job.scale);
                if (job.softcap != 0) s = all(job.softcap) * tanh(s / all(job.softcap));
                acc[m][h] = all_seen ? s : hide(s, token + 8 * h, low[m], high[m]);
            }
        }
    }

    // -inf for the tokens outside [low, high).
    NL_INLINE F8 hide(F8 scores, int64_t token, int64_t low, int64_t high) {
        const I8 t = I8{0, 1, 2, 3, 4, 5, 6, 7} + all_int(int32_t(token));
        const I8 seen = (t >= all_int(int32_t(low))) & (t < all_int(int32_t(high)));
        return seen ? scores : all(-INFINITY);
    }

    // Where the head's keys or values of the block that holds `token` begin.
    NL_INLINE int64_t page_of(const NlCache& cache, const int32_t* table, int64_t kv_head, int64_t token) {
        const int64_t block = table[token / cache.block_size];
        return block * cache.block_stride + kv_head * cache.block_size * cache.head_dim;
    }

    // Where the panel of keys that begins with `token` lies.
    NL_INLINE int64_t keys_of(const NlCache& cache, const int32_t* table, int64_t kv_head, int64_t token) {
        return page_of(cache, table, kv_head, token) + token % cache.block_size * cache.head_dim;
    }

    void score(const NlAttention& job, const int32_t* table, int64_t kv_head, int64_t from, int64_t to,
               float (&scores)[M][kSpan], float (&maximum)[M]) {
        const NlCache& cache = job.cache;
        const int64_t distance = (kFetchAheadKeys / cache.head_dim + kLanes - 1) / kLanes * kLanes;
        F8 top[M];
        for (int m = 0; m < M; ++m) top[m] = all(-INFINITY);
        for (int64_t token = from; token < to; token += kLanes) {
            const int64_t later = token + distance < to ? token + distance : token;
            F8 acc[M][2];
            score_panel(job, keys_of(cache, table, kv_head, token), keys_of(cache, table, kv_head, later),
                        token, query, low, high, acc);
            for (int m = 0; m < M; ++m) {
                store(scores[m] + token - from, acc[m][0]);
                store(scores[m] + token - from + 8, acc[m][1]);
                top[m] = max(top[m], max(acc[m][0], acc[m][1]));
            }
        }
        for (int m = 0; m < M; ++m) maximum[m] = max_lanes(top[m]);
    }

    // Scores to e^(score - maximum), in place; returns their sum.
    static float weigh(float* scores, float maximum, int64_t count) {
        F8 sum = all(0);
        for (int64_t i = 0; i < count; i += 8) {
            const F8 p = exp(load(scores + i) - all(maximum));
            store(scores + i, p);
            sum += p;
        }
        return sum_lanes(sum);
    }

    void add_values(const NlAttention& job, const int32_t* table, int64_t kv_head, int64_t from, int64_t to,
                    const float (&scores)[M][kSpan], const Rescale (&rescale)[M]) {
        const NlCache& cache = job.cache;
        for (int64_t d = 0; d < cache.head_dim; d += kLanes) {
            F8 acc[M][2];
            for (int m = 0; m < M; ++m) acc[m][0] = acc[m][1] = all(0);
            for (int64_t token = from; token < to;) {
                const int64_t offset = token % cache.block_size, left = cache.block_size - offset;
                const int64_t count = to - token < left ? to - token : left;
                const int64_t at =
                    page_of(cache, table, kv_head, token) + d * cache.block_size + offset * kLanes;
                const float* weights[M];
                for (int m = 0; m < M; ++m) weights[m] = scores[m] + token - from;
                const uint16_t* panel = cache.values + at;
                add_panel<M>(panel, count, weights, acc, panel + cache.block_size * kLanes, nullptr);
                token += count;
            }
            for (int m = 0; m < M; ++m) {
                if (rescale[m].now == 0 && rescale[m].before == 1) continue;
                for (int h = 0; h < 2; ++h) {
                    float* to_acc = state[m]->acc + d + 8 * h;
                    store(to_acc, merged(load(to_acc), acc[m][h], rescale[m]));
                }
            }
        }
    }
};

// Six rows fill the registers; a remainder of 5, 7 or 8 goes better as two tiles of about the same size.
NL_INLINE int64_t tile_rows(int64_t left) {
    if (left >= 9 || left == 6) return 6;
    if (left == 5) return 3;
    return left > 4 ? 4 : left;
}

struct ItemRows {
    const NlAttention& job;
    const NlAttentionItem& item;
    int64_t kv_head, group;
    RowState* states;

    template <int M>
    void run(int64_t first, int64_t span) const {
        SpanTile<M> tile;
        const int64_t begin = span * kSpan, end = begin + kSpan;
        for (int m = 0; m < M; ++m) {
            const int64_t row = (first + m) / group, head = kv_head * group + (first + m) % group;
            const int64_t position = item.position + row;
            const int64_t oldest = job.window > 0 && position >= job.window ? position - job.window + 1 : 0;
            tile.query[m] = job.query + (item.row + row) * job.query_stride + head * job.cache.head_dim;
            tile.state[m] = states + first + m;
            tile.high[m] = position + 1 < end ? position + 1 : end;
            tile.low[m] = oldest > begin ? oldest : begin;
        }
        tile.run(job, job.block_tables + item.sequence * job.block_table_stride, kv_head);
    }
};

inline void attend(const NlAttention& job, const NlAttentionItem& item, int64_t kv_head) {
    const int64_t dim = job.cache.head_dim, group = job.heads / job.cache.kv_heads, count = item.rows * group;
    RowState states[kItemRows * kMaxGroup];
    for (int64_t i = 0; i < count; ++i) {
        const int64_t head = kv_head * group + i % group;
        float* acc = item.slot >= 0 ? job.partials + (item.slot * job.heads + head) * (dim + 2)
                                    : job.out + (item.row + i / group) * job.out_stride + head * dim;
        states[i] = {acc, -INFINITY, 0};
        for (int64_t d = 0; d < dim; d += 8) store(acc + d, all(0));
    }
    const ItemRows rows = {job, item, kv_head, group, states};
    for (int64_t span = item.span_begin; span < item.span_end; ++span) {
        for (int64_t i = 0; i < count;) {
            const int64_t size = tile_rows(count - i);
            switch (size) {
                case 6: rows.run<6>(i, span); break;
                case 4: rows.run<4>(i, span); break;
                case 3: rows.run<3>(i, span); break;
                case 2: rows.run<2>(i, span); break;
                default: rows.run<1>(i, span); break;
            }
            i += size;
        }
    }
    for (int64_t i = 0; i < count; ++i) {
        float* acc = states[i].acc;
        if (item.slot >= 0) {
            acc[dim] = states[i].maximum;
            acc[dim + 1] = states[i].total;
        } else if (states[i].total != 0) {
            for (int64_t d = 0; d < dim; d += 8) store(acc + d, load(acc + d) / all(states[i].total));
        }
    }
}

inline void attention(const NlAttention* job, const NlAttentionItem* items, int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit)
        attend(*job, items[unit / job->cache.kv_heads], unit % job->cache.kv_heads);
}

inline void attention_merge(const NlAttention* job, const NlAttentionMerge* merges, int64_t begin,
                            int64_t end) {
    const int64_t dim = job->cache.head_dim;
    for (int64_t unit = begin; unit < end; ++unit) {
        const NlAttentionMerge& row = merges[unit / job->heads];
        const int64_t head = unit % job->heads;
        RowState state = {job->out + row.row * job->out_stride + head * dim, -INFINITY, 0};
        for (int64_t slot = row.slot; slot < row.slot + row.slots; ++slot) {
            const float* part = job->partials + (slot * job->heads + head) * (dim + 2);
            if (part[dim + 1] == 0) continue;
            const Rescale rescale = merge(state, part[dim], part[dim + 1]);
            for (int64_t d = 0; d < dim; d += 8)
                store(state.acc + d, merged(load(state.acc + d), load(part + d), rescale));
        }
        for (int64_t d = 0; d < dim; d += 8) store(state.acc + d, load(state.acc + d) / all(state.total));
    }
}

}  // namespace NL_VARIANT
}  // namespace nl
