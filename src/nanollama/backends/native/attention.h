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

constexpr int kVecs = kLanes / kVecLanes;  // vectors that hold the lanes of a panel
#ifdef NL_WIDE
constexpr int kTileRows = 12, kPanelsAtOnce = 2;
#else
constexpr int kTileRows = 6, kPanelsAtOnce = 1;
#endif

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

template <int M, int P>
struct Sums {
    Vec of[P][M][kVecs];

    NL_MEMBER Sums() {
        for (int p = 0; p < P; ++p)
            for (int m = 0; m < M; ++m)
                for (int h = 0; h < kVecs; ++h) of[p][m][h] = Vec{};
    }
};

// P panels side by side: few rows alone would wait for each sum before they can add to it again.
// sums[p][m] += sum over i < n of x[m * kStride + i] * panel[p][i]. Meanwhile as many bytes at `next` and
// `after` (unless null) are fetched: line by line between the sums, since a burst of prefetches would stall the
// loads behind it.
template <int M, int P, int kStride>
NL_INLINE void add_panels(const uint16_t* const (&panel)[P], int64_t n, const float* x, Sums<M, P>& sums,
                          const uint16_t* const (&next)[P], const uint16_t* const (&after)[P]) {
    for (int64_t i = 0; i < n; ++i) {
        if (i % 2 == 0) {
            for (int p = 0; p < P; ++p) {
                __builtin_prefetch(next[p] + i * kLanes, 0, 2);
                if (after[p]) __builtin_prefetch(after[p] + i * kLanes, 0, 2);
            }
        }
        for (int p = 0; p < P; ++p) {
            for (int h = 0; h < kVecs; ++h) {
                const Vec lanes = vec_from_half(panel[p] + i * kLanes + h * kVecLanes);
                for (int m = 0; m < M; ++m)
                    sums.of[p][m][h] = fma(lanes, every<Vec>(x[m * kStride + i]), sums.of[p][m][h]);
            }
        }
    }
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

template <class F>
NL_INLINE F merged(F before, F now, const Rescale& rescale) {
    return rescale.before == 0 ? now * every<F>(rescale.now)
                               : fma(before, every<F>(rescale.before), now * every<F>(rescale.now));
}

// Divides the sum of a head's values by the sum of their weights, with that of its sink where there is one.
// Always the last step of a row, so that it is the same however the row's spans were cut.
NL_INLINE void finish(const NlAttention& job, RowState state, int64_t head) {
    float before = 1;
    if (job.sinks) before = merge(state, job.sinks[head], 1).before;
    for (int64_t d = 0; d < job.cache.head_dim; d += 8)
        store(state.acc + d, load(state.acc + d) * all(before) / all(state.total));
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

// M rows (a query and a head each) against one span.
template <int M>
struct SpanTile {
    static constexpr int P = M * kPanelsAtOnce <= kTileRows ? kPanelsAtOnce : 1;
    const float* query[M];
    RowState* state[M];
    int64_t low[M], high[M];  // visible tokens, clipped to the span

    void run(const NlAttention& job, const Pages& pages, const Upcoming& upcoming) {
        int64_t from = low[0], to = high[0];
        for (int m = 1; m < M; ++m) {
            from = low[m] < from ? low[m] : from;
            to = high[m] > to ? high[m] : to;
        }
        from = from / kLanes * kLanes;
        if (from >= to) return;
        const int64_t dim = job.cache.head_dim;
        alignas(64) float queries[M * kMaxHeadDim], scores[M * kSpan];  // rows at distances known here
        float maximum[M], total[M];
        for (int m = 0; m < M; ++m) memcpy(queries + m * kMaxHeadDim, query[m], dim * sizeof(float));
        score(job, pages, from, to, queries, scores, maximum);
        for (int m = 0; m < M; ++m) total[m] = weigh(scores + m * kSpan, maximum[m], to - from);
        Rescale rescale[M];
        for (int m = 0; m < M; ++m)
            rescale[m] = low[m] < high[m] ? merge(*state[m], maximum[m], total[m]) : Rescale{1, 0};
        for (int64_t d = 0; d < dim;) {
            if (d + P * kLanes <= dim)
                add_values<P>(pages, upcoming, d, from, to, scores, rescale), d += P * kLanes;
            else
                add_values<1>(pages, upcoming, d, from, to, scores, rescale), d += kLanes;
        }
    }

    // -inf for the tokens outside [low, high).
    NL_INLINE Vec hide(Vec scores, int64_t token, int64_t low, int64_t high) {
        typedef typename IntsOf<Vec>::type Ints;
        Ints t;
        for (int i = 0; i < kVecLanes; ++i) t[i] = int32_t(token) + i;
        return t >= int32_t(low) & t < int32_t(high) ? scores : every<Vec>(-INFINITY);
    }

    // Scores of the 16 tokens from `token` on, for P panels; -inf where a row does not see the token.
    template <int P>
    NL_MEMBER void score_panels(const NlAttention& job, const Pages& pages, int64_t token, int64_t from,
                                int64_t to, const float* queries, float* scores, Vec (&top)[M][kVecs]) {
        const int64_t distance = (kFetchAheadKeys / job.cache.head_dim + kLanes - 1) / kLanes * kLanes;
        const uint16_t *panel[P], *next[P], *after[P];
        for (int p = 0; p < P; ++p) {
            const int64_t here = token + p * kLanes, later = here + distance < to ? here + distance : here;
            const int64_t at = pages.keys(here);
            panel[p] = job.cache.keys + at;
            next[p] = job.cache.keys + pages.keys(later);
            // The values of these tokens are needed after the scores. They take as much room as the keys, at the
            // same place of their page.
            after[p] = job.cache.values + at;
        }
        Sums<M, P> sums;
        add_panels<M, P, kMaxHeadDim>(panel, job.cache.head_dim, queries, sums, next, after);
        for (int p = 0; p < P; ++p) {
            const int64_t here = token + p * kLanes;
            for (int m = 0; m < M; ++m) {
                const bool all_seen = low[m] <= here && here + kLanes <= high[m];
                for (int h = 0; h < kVecs; ++h) {
                    Vec s = sums.of[p][m][h] * every<Vec>(job.scale);
                    if (job.softcap != 0) s = softcap(s, job.softcap);
                    if (!all_seen) s = hide(s, here + h * kVecLanes, low[m], high[m]);
                    store(scores + m * kSpan + here - from + h * kVecLanes, s);
                    top[m][h] = max(top[m][h], s);
                }
            }
        }
    }

    void score(const NlAttention& job, const Pages& pages, int64_t from, int64_t to, const float* queries,
               float* scores, float (&maximum)[M]) {
        Vec top[M][kVecs];
        for (int m = 0; m < M; ++m)
            for (int h = 0; h < kVecs; ++h) top[m][h] = every<Vec>(-INFINITY);
        int64_t token = from;
        for (; token + (P - 1) * kLanes < to; token += P * kLanes)
            score_panels<P>(job, pages, token, from, to, queries, scores, top);
        for (; token < to; token += kLanes)
            score_panels<1>(job, pages, token, from, to, queries, scores, top);
        for (int m = 0; m < M; ++m) {
            maximum[m] = max_lanes(top[m][0]);
            for (int h = 1; h < kVecs; ++h) {
                const float other = max_lanes(top[m][h]);
                maximum[m] = other > maximum[m] ? other : maximum[m];
            }
        }
    }

    // Scores to e^(score - maximum), in place; returns their sum.
    static float weigh(float* scores, float maximum, int64_t count) {
        Vec sum = {};
        for (int64_t i = 0; i < count; i += kVecLanes) {
            const Vec p = exp(load_vec(scores + i) - every<Vec>(maximum));
            store(scores + i, p);
            sum += p;
        }
        return sum_lanes(sum);
    }

    // Dims [d, d + 16 P) of the sums of the values.
    template <int P>
    NL_MEMBER void add_values(const Pages& pages, const Upcoming& upcoming, int64_t d, int64_t from,
                              int64_t to, const float* scores, const Rescale (&rescale)[M]) {
        const NlCache& cache = pages.cache;
        Sums<M, P> sums;
        for (int64_t token = from; token < to;) {
            const int64_t offset = token % cache.block_size, left = cache.block_size - offset;
            const int64_t count = to - token < left ? to - token : left;
            const uint16_t *panel[P], *next[P], *after[P], *page = cache.values + pages.page(token);
            for (int p = 0; p < P; ++p) {
                panel[p] = page + (d + p * kLanes) * cache.block_size + offset * kLanes;
                next[p] = panel[p] + P * cache.block_size * kLanes;
                const int64_t then = upcoming.from + token - from;
                after[p] = then < upcoming.to ? cache.keys + upcoming.pages.page(then) + (panel[p] - page)
                                              : nullptr;
            }
            add_panels<M, P, kSpan>(panel, count, scores + token - from, sums, next, after);
            token += count;
        }
        for (int m = 0; m < M; ++m) {
            if (rescale[m].now == 0 && rescale[m].before == 1) continue;
            for (int p = 0; p < P; ++p) {
                for (int h = 0; h < kVecs; ++h) {
                    float* to_acc = state[m]->acc + d + p * kLanes + h * kVecLanes;
                    store(to_acc, merged(load_vec(to_acc), sums.of[p][m][h], rescale[m]));
                }
            }
        }
    }
};

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

struct ItemRows {
    const NlAttention& job;
    const NlAttentionItem& item;
    int64_t kv_head, group;
    RowState* states;

    template <int M>
    void run(int64_t first, int64_t span, const Upcoming& upcoming) const {
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
        tile.run(job, pages_of(job, item, kv_head), upcoming);
    }
};

inline void attend(const NlAttention& job, const NlAttentionItem& item, int64_t kv_head,
                   const Upcoming& following) {
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
        const Upcoming nothing = {pages_of(job, item, kv_head), 0, 0};
        const Upcoming upcoming = item.rows > 1              ? nothing
                                  : span + 1 < item.span_end ? upcoming_of(job, item, kv_head, span + 1)
                                                             : following;
        for (int64_t i = 0; i < count;) {
            const int64_t size = tile_rows(count - i);
            switch (size) {
#ifdef NL_WIDE
                case 12: rows.run<12>(i, span, upcoming); break;
                case 8: rows.run<8>(i, span, upcoming); break;
#endif
                case 6: rows.run<6>(i, span, upcoming); break;
                case 4: rows.run<4>(i, span, upcoming); break;
                case 3: rows.run<3>(i, span, upcoming); break;
                case 2: rows.run<2>(i, span, upcoming); break;
                default: rows.run<1>(i, span, upcoming); break;
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

inline void attention(const NlAttention* job, const NlAttentionItem* items, int64_t begin, int64_t end,
                      int64_t next) {
    const int64_t kv_heads = job->cache.kv_heads;
    for (int64_t unit = begin; unit < end; ++unit)
        attend(*job, items[unit / kv_heads], unit % kv_heads,
               following_of(*job, items, unit + 1 < end ? unit + 1 : next));
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
