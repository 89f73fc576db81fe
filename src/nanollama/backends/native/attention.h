// Attention over the paged cache: grouped heads and neighbouring queries share one pass over keys and values.
//
// The cache is taken in spans of 256 tokens, counted from token 0, each as attention_span.h does it. A row
// goes through the same operations whether it is decoded alone, with its spans spread over threads and merged
// later, or in the middle of a prefill tile: the result is the same to the bit.
#pragma once
#include "attention_span.h"

namespace nl {
namespace NL_VARIANT {

// Divides the sum of a head's values by the sum of their weights, with that of its sink where there is one.
// Always the last step of a row, so that it is the same however the row's spans were cut.
NL_INLINE void finish(const NlAttention& job, RowState state, int64_t head) {
    float before = 1;
    if (job.sinks) before = merge(state, job.sinks[head], 1).before;
    for (int64_t d = 0; d < job.cache.head_dim; d += 8)
        store(state.acc + d, load(state.acc + d) * all(before) / all(state.total));
}

// Twelve rows (six in narrower vectors) fill the registers; a remainder goes as few tiles of about one size.
NL_INLINE int64_t tile_rows(int64_t left) {
#ifdef NL_WIDE
    if (left >= 12) return 12;
    if (left > 8) return left == 9 ? 6 : left > 10 ? 8 : 6;
    if (left == 8) return 8;
#endif
    if (left >= 9 || left == 6) return 6;
    if (left == 7) return 4;
    if (left == 5) return 3;
    return left > 4 ? 4 : left;
}

NL_INLINE Pages pages_of(const NlAttention& job, const NlAttentionItem& item, int64_t kv_head) {
    return {job.cache, job.block_tables + item.sequence * job.block_table_stride, kv_head};
}

// What an item of one row needs of its span `span`.
NL_INLINE Upcoming upcoming_of(const NlAttention& job, const NlAttentionItem& item, int64_t kv_head,
                               int64_t span) {
    const int64_t begin = span * kSpan, end = begin + kSpan;
    return {pages_of(job, item, kv_head), begin, item.position + 1 < end ? item.position + 1 : end};
}

template <class Number>
struct ItemRows {
    const NlAttention& job;
    const NlAttentionItem& item;
    int64_t kv_head, group;
    RowState* states;

    template <int M>
    void run(int64_t first, int64_t span, const Upcoming& upcoming) const {
        if (item.rows == 1)
            run_tile<M, true>(first, span, upcoming);
        else
            run_tile<M, false>(first, span, upcoming);
    }

    template <int M, bool fetches>
    void run_tile(int64_t first, int64_t span, const Upcoming& upcoming) const {
        SpanTile<Number, M, fetches> tile;
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
        tile.run(job, pages_of(job, item, kv_head), upcoming);
    }
};

template <class Number>
void attend(const NlAttention& job, const NlAttentionItem& item, int64_t kv_head, const Upcoming& following) {
    const int64_t dim = job.cache.head_dim, group = job.heads / job.cache.kv_heads, count = item.rows * group;
    RowState states[kItemRows * kMaxGroup];
    for (int64_t i = 0; i < count; ++i) {
        const int64_t head = kv_head * group + i % group;
        float* acc = item.slot >= 0 ? job.partials + (item.slot * job.heads + head) * (dim + 2)
                                    : job.out + (item.row + i / group) * job.out_stride + head * dim;
        states[i] = {acc, -INFINITY, 0};
        for (int64_t d = 0; d < dim; d += 8) store(acc + d, all(0));
    }
    const ItemRows<Number> rows = {job, item, kv_head, group, states};
    for (int64_t span = item.span_begin; span < item.span_end; ++span) {
        const Upcoming nothing = {pages_of(job, item, kv_head), 0, 0};
        const Upcoming upcoming = item.rows > 1              ? nothing
                                  : span + 1 < item.span_end ? upcoming_of(job, item, kv_head, span + 1)
                                                             : following;
        for (int64_t i = 0; i < count;) {
            const int64_t size = tile_rows(count - i);
            switch (size) {
#ifdef NL_WIDE
                case 12: rows.template run<12>(i, span, upcoming); break;
                case 8: rows.template run<8>(i, span, upcoming); break;
#endif
                case 6: rows.template run<6>(i, span, upcoming); break;
                case 4: rows.template run<4>(i, span, upcoming); break;
                case 3: rows.template run<3>(i, span, upcoming); break;
                case 2: rows.template run<2>(i, span, upcoming); break;
                default: rows.template run<1>(i, span, upcoming); break;
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
            finish(job, states[i], kv_head * group + i % group);
        }
    }
}

// What unit `next` begins with; nothing for -1, and for tiles of a prompt, which wait for arithmetic.
NL_INLINE Upcoming following_of(const NlAttention& job, const NlAttentionItem* items, int64_t next) {
    const int64_t kv_heads = job.cache.kv_heads;
    if (next < 0 || items[next / kv_heads].rows > 1) return {pages_of(job, items[0], 0), 0, 0};
    const NlAttentionItem& item = items[next / kv_heads];
    return upcoming_of(job, item, next % kv_heads, item.span_begin);
}

template <class Number>
void attend_all(const NlAttention& job, const NlAttentionItem* items, int64_t begin, int64_t end,
                int64_t next) {
    const int64_t kv_heads = job.cache.kv_heads;
    for (int64_t unit = begin; unit < end; ++unit)
        attend<Number>(job, items[unit / kv_heads], unit % kv_heads,
                       following_of(job, items, unit + 1 < end ? unit + 1 : next));
}

inline void attention(const NlAttention* job, const NlAttentionItem* items, int64_t begin, int64_t end,
                      int64_t next) {
    if (job->cache.is_float32) return attend_all<float>(*job, items, begin, end, next);
    attend_all<uint16_t>(*job, items, begin, end, next);
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
        finish(*job, state, head);
    }
}

}  // namespace NL_VARIANT
}  // namespace nl
