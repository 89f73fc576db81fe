// R8: weights in groups of 8 output rows. One 32-byte vector is 8 rows x 4 inputs, so no kernel shuffles.
//
//   lane         0                          1                      ...   7
//   32 bytes     row 0: k, k+1, k+2, k+3    row 1: k .. k+3        ...   row 7: k .. k+3
//
// (a byte a weight, once unpacked). Four activation bytes k..k+3, broadcast to all lanes, meet eight rows at
// once, and each 32-bit lane sums its own row. Weights come in blocks of 32 inputs. Step j (0..3) of a block
// unpacks one vector into two: `lo` has inputs 4j..4j+3, `hi` has inputs 16+4j..16+4j+3 (which is how GGUF
// pairs its nibbles, so most formats need no re-pairing).
//
// A group is a few planes, one after the other, so that the quants stay aligned to cache lines:
//
//   quants, per block    4, 5, 6 bits: 128 bytes; the low nibbles of vector j are lo(j), the high hi(j)
//                        8 bits: 256 bytes; vectors lo(0), hi(0), lo(1), hi(1), ...
//   high, per block      5 bits: 32 bytes; bit j of each byte belongs to lo(j), bit 4+j to hi(j)
//                        6 bits: 64 bytes; lo(j) has bits 4(j%2), 4(j%2)+1 of vector j/2, hi(j) the two above
//   scales, per block    for 8 rows, what the kind needs (see kLayouts)
//   super, per 256       for 8 rows, scales of scales
//
// Float kinds have one plane: for each input, 8 rows of one value.
#pragma once
#include <stdint.h>

#include "kernels.h"

namespace nl {

constexpr int64_t kRows = 8;
constexpr int64_t kBlock = 32;
constexpr int64_t kSuper = 256;

constexpr float kFineSteps = 254;  // of NlActivations::words in one of ::quants

// Attention: tokens per span, query rows per item, and query heads per key-value head at the most.
constexpr int64_t kSpan = 256;
constexpr int64_t kItemRows = 16;
constexpr int64_t kMaxGroup = 128;
constexpr int64_t kMaxHeadDim = 512;

struct KindLayout {
    int64_t quants, high, scales, super;  // bytes per group, per block (super: per 256 inputs)
    int64_t value;                        // bytes per weight of a float kind, else 0
};

// kind   GGUF      weight               scales                                super
// U4D    Q4_0      d (q - 8)            d f16
// U4DM   Q4_1      d q + m              d f16, m f16
// U5D    Q5_0      d (q - 16)           d f16
// U5DM   Q5_1      d q + m              d f16, m f16
// S8D    Q8_0      d q                  d f16
// U4K    Q4_K      d s q - dmin n       s u8, n u8                            d f16, dmin f16
// U5K    Q5_K      d s q - dmin n       s u8, n u8                            d f16, dmin f16
// U6K    Q6_K      d s (q - 32)         s i8 of inputs 0-15, s of 16-31       d f16
// N4D    IQ4_NL    d table[q]           d f16
// N4E    MXFP4     2^(e-128) table[q]   e u8
constexpr KindLayout kLayouts[NL_KINDS] = {
    {128, 0, 16, 0, 0},    // U4D
    {128, 0, 32, 0, 0},    // U4DM
    {128, 32, 16, 0, 0},   // U5D
    {128, 32, 32, 0, 0},   // U5DM
    {256, 0, 16, 0, 0},    // S8D
    {128, 0, 16, 32, 0},   // U4K
    {128, 32, 16, 32, 0},  // U5K
    {128, 64, 16, 16, 0},  // U6K
    {128, 0, 16, 0, 0},    // N4D
    {128, 0, 8, 0, 0},     // N4E
    {0, 0, 0, 0, 2},       // F16
    {0, 0, 0, 0, 2},       // BF16
    {0, 0, 0, 0, 4},       // F32
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

// Where unit `unit` of a matrix begins.
inline const uint8_t* address_of(const NlMatrix& matrix, int64_t unit) {
    const NlSegment* segment = matrix.segments;
    for (; unit >= groups_of(segment->rows); ++segment) unit -= groups_of(segment->rows);
    return segment->data + unit * planes_of(segment->kind, matrix.cols).group;
}

inline bool fits(int64_t kind, int64_t cols) {
    const KindLayout& layout = kLayouts[kind];
    return cols > 0 && (layout.value || (cols % kBlock == 0 && (!layout.super || cols % kSuper == 0)));
}

}  // namespace nl
