// Attention of a few rows to one span of the cache: scores, softmax and the weighted sum of values.
//
// Both products are the same small kernel: M rows of scalars times a panel of 16 lanes. In q.k the lanes are
// 16 tokens and the kernel runs over dims; in p.v the lanes are 16 dims and it runs over tokens. No
// horizontal sums, no transposes. Within a span the softmax is exact (all scores first); its result is merged
// into that of the spans before with the usual rescaling.
#pragma once
#include "fetch.h"
#include "kv_cache.h"
#include "layout.h"

namespace nl {
namespace NL_VARIANT {

constexpr int kVecs = kLanes / kVecLanes;  // vectors that hold the lanes of a panel
#ifdef NL_WIDE
constexpr int kMaxPanels = 4, kMaxSums = 12;  // side by side, and rows times panels: what fits the registers
#else
constexpr int kMaxPanels = 1, kMaxSums = 6;
#endif

constexpr int panels_at_once(int rows) {
    int panels = kMaxPanels;
    while (panels > 1 && panels * rows > kMaxSums) panels /= 2;
    return panels;
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
// sums[p][m] += sum over i < n of x[m * kStride + i] * panel[p][i]. Meanwhile, if `fetches`, as many bytes at
// `later[p]` are fetched: line by line between the sums, since a burst of prefetches would stall the loads
// behind it.
template <int M, int P, int kStride, bool fetches, class Number>
NL_INLINE void add_panels(const Number* const (&panel)[P], int64_t n, const float* x, Sums<M, P>& sums,
                          const Number* const (&later)[P]) {
    constexpr int64_t kLine = 64 / (kLanes * sizeof(Number));  // so much of a panel fills a cache line
    static_assert(kLine == 1 || kLine == 2, "the loop below takes one or two at a time");
    const auto add = [&](int64_t i) {
        for (int p = 0; p < P; ++p) {
            Vec lanes[kVecs];
            for (int h = 0; h < kVecs; ++h) lanes[h] = load_vec(panel[p] + i * kLanes + h * kVecLanes);
            // A row's number meets all lanes before the next row's is loaded: there is one register for it.
            for (int m = 0; m < M; ++m) {
                const Vec number = every<Vec>(x[m * kStride + i]);
                for (int h = 0; h < kVecs; ++h) sums.of[p][m][h] = fma(lanes[h], number, sums.of[p][m][h]);
            }
        }
    };
    int64_t i = 0;
    for (; i + kLine <= n; i += kLine) {
        if constexpr (fetches)
            for (int p = 0; p < P; ++p) fetch_once(later[p] + i * kLanes, 64);
        add(i);
        if constexpr (kLine == 2) add(i + 1);
    }
    if (i < n) add(i);
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

// M rows (a query and a head each) against one span. The cache holds Numbers: uint16_t, which are float16, or
// float. `fetches`: it waits for memory, as decoding does, and not for arithmetic.
template <class Number, int M, bool fetches>
struct SpanTile {
    static constexpr int P = panels_at_once(M);
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
        const Number *panel[P], *later[P];
        for (int p = 0; p < P; ++p) {
            const int64_t at = pages.keys(token + p * kLanes);
            panel[p] = (const Number*)job.cache.keys + at;
            // The values of these tokens are needed after the scores. They take as much room as the keys, at
            // the same place of their page.
            later[p] = (const Number*)job.cache.values + at;
        }
        Sums<M, P> sums;
        add_panels<M, P, kMaxHeadDim, fetches>(panel, job.cache.head_dim, queries, sums, later);
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
            const Number *panel[P], *later[P];
            const Number* page = (const Number*)cache.values + pages.page(token);
            const int64_t then = upcoming.from + token - from;
            const Number* keys =
                then < upcoming.to ? (const Number*)cache.keys + upcoming.pages.page(then) : page;
            for (int p = 0; p < P; ++p) {
                const int64_t at = (d + p * kLanes) * cache.block_size + offset * kLanes;
                panel[p] = page + at;
                later[p] = keys + at;
            }
            add_panels<M, P, kSpan, fetches>(panel, count, scores + token - from, sums, later);
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

}  // namespace NL_VARIANT
}  // namespace nl
