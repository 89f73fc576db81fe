// R8: weights in groups of 8 output rows, so that one 32-byte vector is 8 rows x 4 inputs and no kernel ever shuffles.
//
//   vector    lane 0           lane 1           ...   lane 7
//   32 bytes  row 0: k k+1 k+2 k+3 | row 1: k..k+3 | ... | row 7: k..k+3          (one byte a weight, once unpacked)
//
// Four activation bytes k..k+3, broadcast to all lanes, meet eight rows at once, and each 32-bit lane sums its own row.
// Weights come in blocks of 32 inputs. Step j (0..3) of a block unpacks one vector into two: `lo` has inputs 4j..4j+3,
// `hi` has inputs 16+4j..16+4j+3 (which is how GGUF pairs its nibbles, so most formats need no re-pairing).
//
// A group is a few planes, one after the other, so that the quants stay aligned to cache lines:
//
//   quants  per block  4 bit: 128 bytes; vector j: low nibbles lo(j), high nibbles hi(j).  8 bit: 256 bytes; lo(j), hi(j)
//   high    per block  5 bit: 32 bytes; bit j of each byte belongs to lo(j), bit 4 + j to hi(j)
//                      6 bit: 64 bytes; vector j / 2; bits 4(j % 2) + 0,1 belong to lo(j), 4(j % 2) + 2,3 to hi(j)
//   scales  per block  8 rows of what the kind needs (table below)
//   super   per 256    8 rows of float16 scales of scales
//
// Float kinds have one plane: for each input, 8 rows of one value.
#pragma once
#include <stdint.h>

#include "kernels.h"

namespace nl {

constexpr int64_t kRows = 8;
constexpr int64_t kBlock = 32;
constexpr int64_t kSuper = 256;

// Attention: tokens per span, query rows per item, and query heads per key-value head at the most.
constexpr int64_t kSpan = 256;
constexpr int64_t kItemRows = 16;
constexpr int64_t kMaxGroup = 128;

struct KindLayout {
    int64_t quants, high, scales, super;  // bytes per group, per block (super: per 256 inputs)
    int64_t value;                        // bytes per weight of a float kind, else 0
};

//                                           quants high scales super value    weight =             GGUF types
constexpr KindLayout kLayouts[NL_KINDS] = {
    /* U4D  */ {128, 0, 16, 0, 0},    // d (q - 8)              Q4_0     scales: d f16
    /* U4DM */ {128, 0, 32, 0, 0},    // d q + m                Q4_1     scales: d f16, m f16
    /* U5D  */ {128, 32, 16, 0, 0},   // d (q - 16)             Q5_0
    /* U5DM */ {128, 32, 32, 0, 0},   // d q + m                Q5_1
    /* S8D  */ {256, 0, 16, 0, 0},    // d q                    Q8_0
    /* U4K  */ {128, 0, 16, 32, 0},   // d s q - dmin n         Q4_K     scales: s u8, n u8; super: d f16, dmin f16
    /* U5K  */ {128, 32, 16, 32, 0},  // d s q - dmin n         Q5_K
    /* U6K  */ {128, 64, 16, 16, 0},  // d s (q - 32)           Q6_K     scales: s i8 of inputs 0-15, of 16-31; super: d
    /* N4D  */ {128, 0, 16, 0, 0},    // d table[q]             IQ4_NL
    /* N4E  */ {128, 0, 8, 0, 0},     // 2^(e - 128) table[q]   MXFP4    scales: e u8
    /* F16  */ {0, 0, 0, 0, 2},       // F16
    /* BF16 */ {0, 0, 0, 0, 2},       // BF16
    /* F32  */ {0, 0, 0, 0, 4},       // F32
};

// Codebooks of the two 4-bit kinds whose steps are not even (MXFP4's are doubled to make them integers).
constexpr int8_t kTableIq4Nl[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
constexpr int8_t kTableMxfp4[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

// Byte offsets of the planes in a group, for a matrix of `cols` inputs.
struct Planes {
    int64_t high, scales, super, group;
};

inline Planes planes_of(int64_t kind, int64_t cols) {
    const KindLayout& layout = kLayouts[kind];
    const int64_t blocks = cols / kBlock;
    Planes planes;
    planes.high = layout.value ? layout.value * kRows * cols : layout.quants * blocks;
    planes.scales = planes.high + layout.high * blocks;
    planes.super = planes.scales + layout.scales * blocks;
    planes.group = (planes.super + layout.super * (cols / kSuper) + 63) / 64 * 64;
    return planes;
}

inline int64_t groups_of(int64_t rows) { return (rows + kRows - 1) / kRows; }

inline bool fits(int64_t kind, int64_t cols) {
    const KindLayout& layout = kLayouts[kind];
    return cols > 0 && (layout.value || (cols % kBlock == 0 && (!layout.super || cols % kSuper == 0)));
}

}  // namespace nl
