// What a matmul kernel works on: a range of groups of one segment, all activation rows, and where results go.
#pragma once
#include "quants.h"

namespace nl {
namespace NL_VARIANT {

struct Output {
    float* at;  // row 0, column 0 of the segment
    int64_t stride;
    const float* bias;  // of the segment's column 0, or null
    int64_t rows;       // weight rows of the segment, without padding

    void put(int64_t group, int64_t row, F8 v) const {
        float* to = at + row * stride + group * kRows;
        const int64_t count = rows - group * kRows < kRows ? rows - group * kRows : kRows;
        if (count == kRows) {
            if (bias) v += load(bias + group * kRows);
            store(to, v);
            return;
        }
        for (int64_t i = 0; i < count; ++i) {
            to[i] = v[i];
            if (bias) to[i] += bias[group * kRows + i];
        }
    }
};

struct Job {
    const uint8_t* data;
    Planes planes;
    int64_t cols;
    const NlActivations* x;
    Output out;
    int64_t begin, end;   // groups
    const uint8_t* next;  // what to fetch past the end

    // Block `block` of a group; a whole number of super-blocks lies before it.
    template <class Q, class S>
    NL_MEMBER Group block_of(int64_t group, int64_t block) const {
        const uint8_t* base = data + group * planes.group;
        return {base + block * Q::quants, base + planes.high + block * Q::high,
                base + planes.scales + block * S::bytes, base + planes.super + block / 8 * S::super_bytes};
    }

    // What to fetch while G groups from `group` on are multiplied.
    template <bool past_l2, int G>
    NL_MEMBER const uint8_t* later(int64_t group) const {
        const int64_t then = group + fetch_distance<past_l2, G>(planes);
        return then < end ? data + then * planes.group : next + (then - end) * planes.group;
    }
};

// Activation rows are taken in turns that stay in L2 while the groups of the range go by.
constexpr int64_t kTurnBytes = 128 * 1024;

}  // namespace NL_VARIANT
}  // namespace nl
