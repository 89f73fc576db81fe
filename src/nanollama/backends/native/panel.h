// Many activation rows by two groups of weights, where vectors have eight lanes.
//
// With few registers unpacking weights anew for every few rows costs as much as multiplying them. Here the
// weights of two groups are unpacked once, into a panel that stays in L1 while all rows go by. A panel knows
// nothing of the kind of its weights but what decides how they are multiplied:
//
//   ByteBlock     unsigned weights, activations in bytes
//   HalvesBlock   the same with a scale for inputs 0-15 and one for 16-31
//   WordBlock     activations in words
//
// Every lane sees the sums of tile() in matmul.h (integers, so their order is free), and the same operations
// on floats in the same order: the results are the same to the bit.
#pragma once
#include <type_traits>

#include "job.h"

namespace nl {
namespace NL_VARIANT {

constexpr int kPanelGroups = 2;

// A tile's activation rows, `cols` apart, as bytes or words, and their scales.
template <class Number>
struct PanelRows {
    const Number* numbers;
    const float *meta, *word_sums;
    int64_t cols;

    NL_MEMBER const Number* of(int64_t row, int64_t block) const {
        return numbers + row * cols + block * kBlock;
    }
    NL_MEMBER F8 meta_of(int64_t row, int64_t block, int i) const {
        return all(meta[row * (cols / 8) + block * 4 + i]);
    }
    NL_MEMBER F8 word_sum_of(int64_t row, int64_t block) const {
        return all(word_sums[row * (cols / kBlock) + block]);
    }
};

// Where input i of step j (0 to 7: lo(0), hi(0), lo(1), ...) of a block is.
constexpr int input_of(int j) { return j / 2 * 4 + j % 2 * 16; }

template <int G, int M>
using Accumulators = F8[G][M];

template <int max_weight>
struct ByteBlock {
    typedef int8_t Number;
    static constexpr int G = kPanelGroups, tile_rows = 3;
    B32 quants[8][G];
    F8 scale[G], min[G];

    template <class Q, class S>
    NL_MEMBER void unpack(const Group& from, int g) {
        for (int j = 0; j < 4; ++j) Q::unpack(from, j, quants[2 * j][g], quants[2 * j + 1][g]);
        S::read(from, scale[g], min[g]);
    }

    template <int M>
    NL_MEMBER void add_to(Accumulators<G, M>& acc, const PanelRows<int8_t>& rows, int64_t block) const {
        constexpr int room = narrow_room(max_weight);  // dots before a Narrow is full
        Narrow part[G][M];
        I8 sum[G][M];
#pragma GCC unroll 8
        for (int j = 0; j < 8; ++j) {
            for (int m = 0; m < M; ++m) {
                const B32 x = all_fours(rows.of(m, block) + input_of(j));
                for (int g = 0; g < G; ++g) {
                    part[g][m] = j % room == 0 ? dot(quants[j][g], x) : dot(part[g][m], quants[j][g], x);
                    if ((j + 1) % room != 0) continue;
                    sum[g][m] = j < room ? widen(part[g][m]) : sum[g][m] + widen(part[g][m]);
                }
            }
        }
        for (int m = 0; m < M; ++m) {
            const F8 unit = rows.meta_of(m, block, 0), inputs = rows.meta_of(m, block, 1);
            for (int g = 0; g < G; ++g) {
                acc[g][m] = fma(scale[g] * unit, to_float(sum[g][m]), acc[g][m]);
                acc[g][m] = fma(min[g], inputs, acc[g][m]);
            }
        }
    }
};

template <int max_weight>
struct HalvesBlock {
    typedef int8_t Number;
    static constexpr int G = kPanelGroups, tile_rows = 3;
    B32 quants[8][G];
    RowScale row_scales[2][G];
    F8 scale[G], min[2][G];

    template <class Q, class S>
    NL_MEMBER void unpack(const Group& from, int g) {
        F8 offset;
        for (int j = 0; j < 4; ++j) Q::unpack(from, j, quants[2 * j][g], quants[2 * j + 1][g]);
        S::read(from, scale[g], offset);
        for (int half = 0; half < 2; ++half) {
            row_scales[half][g] = row_scale(from.scales + 8 * half);
            min[half][g] = offset * to_float(ints_from_signed_bytes(from.scales + 8 * half));
        }
    }

    template <int M>
    NL_MEMBER void add_to(Accumulators<G, M>& acc, const PanelRows<int8_t>& rows, int64_t block) const {
        constexpr int room = narrow_room(max_weight);
        static_assert(room <= 4, "a Narrow holds dots of one half");
        Narrow part[2][G][M];
        I8 sum[G][M];
#pragma GCC unroll 8
        for (int j = 0; j < 8; ++j) {
            for (int m = 0; m < M; ++m) {
                const B32 x = all_fours(rows.of(m, block) + input_of(j));
                for (int g = 0; g < G; ++g) {
                    Narrow& half = part[j % 2][g][m];
                    half = j / 2 % room == 0 ? dot(quants[j][g], x) : dot(half, quants[j][g], x);
                    if ((j / 2 + 1) % room != 0) continue;
                    const I8 scaled = widen(half, row_scales[j % 2][g]);
                    sum[g][m] = j / 2 < room && j % 2 == 0 ? scaled : sum[g][m] + scaled;
                }
            }
        }
        for (int m = 0; m < M; ++m) {
            const F8 unit = rows.meta_of(m, block, 0);
            const F8 first = rows.meta_of(m, block, 2), second = rows.meta_of(m, block, 3);
            for (int g = 0; g < G; ++g) {
                acc[g][m] = fma(scale[g] * unit, to_float(sum[g][m]), acc[g][m]);
                acc[g][m] = fma(min[0][g], first, acc[g][m]);
                acc[g][m] = fma(min[1][g], second, acc[g][m]);
            }
        }
    }
};

template <bool has_min>
struct WordBlock {
    typedef int16_t Number;
    static constexpr int G = kPanelGroups, tile_rows = 4;
    S16 quants[16][G];  // even and odd bytes of lo(0), of hi(0), ...
    F8 scale[G], min[G];

    template <class Q, class S>
    NL_MEMBER void unpack(const Group& from, int g) {
        for (int j = 0; j < 4; ++j) {
            B32 lo, hi;
            Q::unpack(from, j, lo, hi);
            to_words<Q::is_signed>(lo, quants[4 * j][g], quants[4 * j + 1][g]);
            to_words<Q::is_signed>(hi, quants[4 * j + 2][g], quants[4 * j + 3][g]);
        }
        S::read(from, scale[g], min[g]);
        scale[g] *= all(1 / kFineSteps);
    }

    template <int M>
    NL_MEMBER void add_to(Accumulators<G, M>& acc, const PanelRows<int16_t>& rows, int64_t block) const {
        I8 sum[G][M];
#pragma GCC unroll 16
        for (int j = 0; j < 16; ++j) {
            for (int m = 0; m < M; ++m) {
                const S16 x = all_twos(rows.of(m, block) + input_of(j / 2) + j % 2 * 2);
                for (int g = 0; g < G; ++g)
                    sum[g][m] = dot_words(j == 0 ? all_int(0) : sum[g][m], quants[j][g], x);
            }
        }
        for (int m = 0; m < M; ++m) {
            const F8 unit = rows.meta_of(m, block, 0);
            for (int g = 0; g < G; ++g) acc[g][m] = fma(scale[g] * unit, to_float(sum[g][m]), acc[g][m]);
            if constexpr (has_min) {
                const F8 inputs = rows.word_sum_of(m, block);
                for (int g = 0; g < G; ++g) acc[g][m] = fma(min[g], inputs, acc[g][m]);
            }
        }
    }
};

// ---- a range of groups by all rows ------------------------------------------------------------------------

static_assert(kTileGroups == kPanelGroups, "so that chunks suit both");

constexpr int64_t kPanelLeastRows = 8;                // fewer do not repay unpacking
constexpr int64_t kPanelBytes = 28 * 1024;            // of unpacked weights, in L1
constexpr int64_t kTurnLeast = 132, kTurnMost = 252;  // rows in a turn, of three or four to a tile

// Some of a matrix's blocks, all rows of a turn by two groups. Where a row has more blocks than a panel,
// several parts make up its sums.
template <class Q, class S, class Block>
class Panel {
  public:
    typedef typename Block::Number Number;

    NL_MEMBER Panel(const Job& job, const Number* numbers) : job_(job), numbers_(numbers) {}

    void run(int64_t group, int64_t first, int64_t last) {
        const int64_t blocks = job_.cols / kBlock, parts = (blocks + kRoom - 1) / kRoom;
        const int64_t size = ((blocks + parts - 1) / parts + kWhole - 1) / kWhole * kWhole;
        for (begin_ = 0; begin_ < blocks; begin_ += size) {
            end_ = begin_ + size < blocks ? begin_ + size : blocks;
            unpack(group, first == 0);
            tiles<Block::tile_rows>(group, first, first, last);
        }
    }

  private:
    static constexpr int64_t kWhole = S::super_bytes ? kSuper / kBlock : 1;  // blocks that share scales
    static constexpr int64_t kRoom = kPanelBytes / int64_t(sizeof(Block)) / kWhole * kWhole;

    // Each weight is fetched once, for the first turn of rows.
    NL_MEMBER void unpack(int64_t group, bool fetches) {
        constexpr int64_t bytes = block_bytes<Q, S>();
        const uint8_t* later = job_.later<false, kPanelGroups>(group) + begin_ * kPanelGroups * bytes;
        for (int g = 0; g < kPanelGroups; ++g) {
            Group weights = job_.block_of<Q, S>(group + g < job_.end ? group + g : group, begin_);
            for (int64_t b = begin_; b < end_; ++b) {
                blocks_[b - begin_].template unpack<Q, S>(weights, g);
                if (fetches) fetch<false>(later, bytes);
                later += bytes;
                advance<Q, S>(weights, b);
            }
        }
    }

    template <int M>
    NL_MEMBER void tiles(int64_t group, int64_t first, int64_t row, int64_t last) {
        for (; row + M <= last; row += M) tile<M>(group, row, unfinished_ + (row - first));
        if constexpr (M > 1) tiles<M - 1>(group, first, row, last);
    }

    template <int M>
    __attribute__((noinline)) void tile(int64_t group, int64_t row, F8 (*unfinished)[kPanelGroups]) {
        const Rows from(*job_.x, row);
        const PanelRows<Number> rows = {numbers_ + row * job_.cols, from.meta, from.word_sums, job_.cols};
        F8 acc[kPanelGroups][M];
        for (int m = 0; m < M; ++m)
            for (int g = 0; g < kPanelGroups; ++g) acc[g][m] = begin_ == 0 ? all(0) : unfinished[m][g];
        for (int64_t b = begin_; b < end_; ++b) blocks_[b - begin_].template add_to<M>(acc, rows, b);
        for (int m = 0; m < M; ++m) {
            for (int g = 0; g < kPanelGroups; ++g) {
                if (end_ < job_.cols / kBlock)
                    unfinished[m][g] = acc[g][m];
                else if (group + g < job_.end)
                    job_.out.put(group + g, row + m, acc[g][m]);
            }
        }
    }

    const Job& job_;
    const Number* numbers_;
    int64_t begin_, end_;  // the blocks that are unpacked
    Block blocks_[kRoom];
    F8 unfinished_[kTurnMost][kPanelGroups];
};

// Rows go in turns that stay in L2 with all their inputs; too few would not repay unpacking.
template <class Q, class S, class Block>
void run_panels(const Job& job, int64_t rows, const typename Block::Number* numbers) {
    const int64_t fit = kTurnBytes / job.cols / 12 * 12;
    const int64_t turn = fit < kTurnLeast ? kTurnLeast : fit < kTurnMost ? fit : kTurnMost;
    Panel<Q, S, Block> panel(job, numbers);
    for (int64_t first = 0; first < rows; first += turn)
        for (int64_t group = job.begin; group < job.end; group += kPanelGroups)
            panel.run(group, first, first + turn < rows ? first + turn : rows);
}

}  // namespace NL_VARIANT
}  // namespace nl
