// GGUF blocks to R8 groups at load, and R8 groups back to float32 rows for the embedding lookup. Both are
// exact.
//
// A block of 32 weights travels as eight 32-bit words of four bytes each: word i holds inputs 4i..4i+3. That
// is what a lane of the layout holds too, so packing is shifting whole words, never single weights.
#include <string.h>

#include "half.h"
#include "layout.h"

namespace nl {
namespace {

enum GgmlType {
    kF32 = 0,
    kF16 = 1,
    kQ4_0 = 2,
    kQ4_1 = 3,
    kQ5_0 = 6,
    kQ5_1 = 7,
    kQ8_0 = 8,
    kQ4_K = 12,
    kQ5_K = 13,
    kQ6_K = 14,
    kIQ4_NL = 20,
    kBF16 = 30,
    kMXFP4 = 39
};

int64_t kind_of(int64_t type) {
    switch (type) {
        case kQ4_0: return NL_U4D;
        case kQ4_1: return NL_U4DM;
        case kQ5_0: return NL_U5D;
        case kQ5_1: return NL_U5DM;
        case kQ8_0: return NL_S8D;
        case kQ4_K: return NL_U4K;
        case kQ5_K: return NL_U5K;
        case kQ6_K: return NL_U6K;
        case kIQ4_NL: return NL_N4D;
        case kMXFP4: return NL_N4E;
        case kF16: return NL_F16;
        case kBF16: return NL_BF16;
        case kF32: return NL_F32;
        default: return -1;
    }
}

using Words = uint32_t[8];

void low_nibbles_first(const uint8_t* nibbles, Words words) {
    for (int j = 0; j < 4; ++j) {
        const uint32_t pair = load_u32(nibbles + 4 * j);
        words[j] = pair & 0x0f0f0f0fu;
        words[4 + j] = pair >> 4 & 0x0f0f0f0fu;
    }
}

// Four consecutive bits to bit 4 of four bytes. The product puts a copy of the bits at 0, 7, 14 and 21: none
// overlap.
uint32_t fifth_bits(uint32_t bits) { return ((bits & 15u) * 0x00204081u & 0x01010101u) << 4; }

void add_fifth_bits(const uint8_t* high, Words words) {
    const uint32_t bits = load_u32(high);
    for (int i = 0; i < 8; ++i) words[i] |= fifth_bits(bits >> 4 * i);
}

// Where one row's block goes: pointers to this row's lane in each plane.
struct Lane {
    uint8_t *quants, *high, *scales, *super;
    int row;
};

void pack4(const Words words, const Lane& lane) {
    for (int j = 0; j < 4; ++j) {
        const uint32_t low = words[j] & 0x0f0f0f0fu, high = words[4 + j] & 0x0f0f0f0fu;
        store_u32(lane.quants + 32 * j + 4 * lane.row, low | high << 4);
    }
}

void pack5(const Words words, const Lane& lane) {
    pack4(words, lane);
    uint32_t bits = 0;
    for (int i = 0; i < 8; ++i) bits |= (words[i] >> 4 & 0x01010101u) << i;
    store_u32(lane.high + 4 * lane.row, bits);
}

void pack6(const Words words, const Lane& lane) {
    pack4(words, lane);
    for (int v = 0; v < 2; ++v) {
        uint32_t bits = 0;
        for (int j = 0; j < 2; ++j) {
            bits |= (words[2 * v + j] >> 4 & 0x03030303u) << 4 * j;
            bits |= (words[4 + 2 * v + j] >> 4 & 0x03030303u) << (4 * j + 2);
        }
        store_u32(lane.high + 32 * v + 4 * lane.row, bits);
    }
}

void pack8(const uint8_t* weights, const Lane& lane) {
    for (int i = 0; i < 8; ++i)
        store_u32(lane.quants + 64 * (i % 4) + 32 * (i / 4) + 4 * lane.row, load_u32(weights + 4 * i));
}

// Sub-block scale and minimum of Q4_K and Q5_K: eight pairs of six bits in twelve bytes.
void scale_and_min(const uint8_t* packed, int s, uint8_t* scale, uint8_t* minimum) {
    if (s < 4) {
        *scale = packed[s] & 63;
        *minimum = packed[s + 4] & 63;
    } else {
        *scale = uint8_t((packed[s + 4] & 15) | packed[s - 4] >> 6 << 4);
        *minimum = uint8_t(packed[s + 4] >> 4 | packed[s] >> 6 << 4);
    }
}

// One row of one block of 32 in its GGUF form, to its lane.
template <int type>
void pack_block(const uint8_t* block, const Lane& lane) {
    Words words;
    const int row = lane.row;
    store_u16(lane.scales + 2 * row, load_u16(block));
    if (type == kQ4_0 || type == kIQ4_NL) {
        low_nibbles_first(block + 2, words);
        pack4(words, lane);
    } else if (type == kQ4_1) {
        store_u16(lane.scales + 16 + 2 * row, load_u16(block + 2));
        low_nibbles_first(block + 4, words);
        pack4(words, lane);
    } else if (type == kQ5_0) {
        low_nibbles_first(block + 6, words);
        add_fifth_bits(block + 2, words);
        pack5(words, lane);
    } else if (type == kQ5_1) {
        store_u16(lane.scales + 16 + 2 * row, load_u16(block + 2));
        low_nibbles_first(block + 8, words);
        add_fifth_bits(block + 4, words);
        pack5(words, lane);
    } else if (type == kQ8_0) {
        pack8(block + 2, lane);
    }
}

void pack_mxfp4(const uint8_t* block, const Lane& lane) {
    Words words;
    lane.scales[lane.row] = block[0];
    low_nibbles_first(block + 1, words);
    pack4(words, lane);
}

// Sub-block s of a super-block of 256.
template <int type>
void pack_sub_block(const uint8_t* block, int s, const Lane& lane) {
    Words words;
    const int row = lane.row;
    if (type == kQ6_K) {
        const int half = s / 4, quarter = s % 4;
        const uint8_t* low = block + 64 * half + 32 * (quarter & 1);
        const uint8_t* high = block + 128 + 32 * half;
        for (int i = 0; i < 8; ++i) {
            words[i] = load_u32(low + 4 * i) >> 4 * (quarter >> 1) & 0x0f0f0f0fu;
            words[i] |= (load_u32(high + 4 * i) >> 2 * quarter & 0x03030303u) << 4;
        }
        pack6(words, lane);
        lane.scales[row] = block[192 + 2 * s];
        lane.scales[8 + row] = block[192 + 2 * s + 1];
        if (s == 0) store_u16(lane.super + 2 * row, load_u16(block + 208));
        return;
    }
    const uint8_t* nibbles = block + (type == kQ5_K ? 48 : 16) + 32 * (s / 2);
    for (int i = 0; i < 8; ++i) words[i] = load_u32(nibbles + 4 * i) >> 4 * (s % 2) & 0x0f0f0f0fu;
    if (type == kQ5_K) {
        for (int i = 0; i < 8; ++i) words[i] |= (load_u32(block + 16 + 4 * i) >> s & 0x01010101u) << 4;
        pack5(words, lane);
    } else {
        pack4(words, lane);
    }
    scale_and_min(block + 4, s, lane.scales + row, lane.scales + 8 + row);
    if (s == 0) {
        store_u16(lane.super + 2 * row, load_u16(block));
        store_u16(lane.super + 16 + 2 * row, load_u16(block + 2));
    }
}

template <int type>
void pack_row(const uint8_t* source, int64_t cols, const KindLayout& layout, const Planes& planes,
              uint8_t* group, int row) {
    constexpr int super_bytes = type == kQ4_K ? 144 : type == kQ5_K ? 176 : type == kQ6_K ? 210 : 0;
    constexpr int block_bytes = type == kQ4_0 || type == kIQ4_NL ? 18
                                : type == kQ4_1                  ? 20
                                : type == kQ5_0                  ? 22
                                : type == kQ5_1                  ? 24
                                : type == kMXFP4                 ? 17
                                                                 : 34;
    for (int64_t b = 0; b < cols / kBlock; ++b) {
        const Lane lane = {group + b * layout.quants, group + planes.high + b * layout.high,
                           group + planes.scales + b * layout.scales,
                           group + planes.super + b / 8 * layout.super, row};
        if constexpr (super_bytes != 0)
            pack_sub_block<type>(source + b / 8 * super_bytes, int(b % 8), lane);
        else if constexpr (type == kMXFP4)
            pack_mxfp4(source + b * block_bytes, lane);
        else
            pack_block<type>(source + b * block_bytes, lane);
    }
}

template <int size>
void pack_float_row(const uint8_t* source, int64_t cols, uint8_t* group, int row) {
    for (int64_t k = 0; k < cols; ++k) memcpy(group + (k * kRows + row) * size, source + k * size, size);
}

void pack_row_of(int64_t type, const uint8_t* source, int64_t cols, const Planes& planes, uint8_t* group,
                 int row) {
    const KindLayout& layout = kLayouts[kind_of(type)];
    switch (type) {
        case kQ4_0: return pack_row<kQ4_0>(source, cols, layout, planes, group, row);
        case kQ4_1: return pack_row<kQ4_1>(source, cols, layout, planes, group, row);
        case kQ5_0: return pack_row<kQ5_0>(source, cols, layout, planes, group, row);
        case kQ5_1: return pack_row<kQ5_1>(source, cols, layout, planes, group, row);
        case kQ8_0: return pack_row<kQ8_0>(source, cols, layout, planes, group, row);
        case kQ4_K: return pack_row<kQ4_K>(source, cols, layout, planes, group, row);
        case kQ5_K: return pack_row<kQ5_K>(source, cols, layout, planes, group, row);
        case kQ6_K: return pack_row<kQ6_K>(source, cols, layout, planes, group, row);
        case kIQ4_NL: return pack_row<kIQ4_NL>(source, cols, layout, planes, group, row);
        case kMXFP4: return pack_row<kMXFP4>(source, cols, layout, planes, group, row);
        case kF32: return pack_float_row<4>(source, cols, group, row);
        default: return pack_float_row<2>(source, cols, group, row);
    }
}

// ---- and back ---------------------------------------------------------------------------------------------

// The 32 stored numbers of a row's block, as they are in the file: unsigned quants, signed bytes, or table
// indices.
void unpack_block(int64_t kind, const Lane& lane, int32_t* q) {
    const uint8_t* quants = lane.quants + 4 * lane.row;
    const KindLayout& layout = kLayouts[kind];
    for (int i = 0; i < kBlock; ++i) {
        const int half = i / 16, j = i % 16 / 4, byte = i % 4;
        if (layout.quants == 256) {
            q[i] = int8_t(quants[64 * j + 32 * half + byte]);
            continue;
        }
        const uint8_t* high = lane.high + 4 * lane.row + byte;
        q[i] = quants[32 * j + byte] >> 4 * half & 15;
        if (layout.high == 32) q[i] |= (*high >> (4 * half + j) & 1) << 4;
        if (layout.high == 64) q[i] |= (high[32 * (j / 2)] >> (4 * (j % 2) + 2 * half) & 3) << 4;
    }
}

float half_at(const uint8_t* plane, int row) { return float_of_half(load_u16(plane + 2 * row)); }

float exponent_of(uint8_t e) {  // 2^(e - 128); the two smallest are subnormal
    return float_of_bits(e < 2 ? 0x00200000u << e : uint32_t(e - 1) << 23);
}

void dequantize_block(int64_t kind, const Lane& lane, float* out) {
    int32_t q[kBlock];
    unpack_block(kind, lane, q);
    const uint8_t *scales = lane.scales, *super = lane.super;
    const int row = lane.row;
    float d = kind == NL_N4E ? exponent_of(scales[row]) : half_at(scales, row);
    float m = 0;
    int offset = 0;
    switch (kind) {
        case NL_U4D: offset = 8; break;
        case NL_U5D: offset = 16; break;
        case NL_U4DM:
        case NL_U5DM: m = half_at(scales + 16, row); break;
        case NL_U4K:
        case NL_U5K:
            d = half_at(super, row) * float(scales[row]);
            m = -(half_at(super + 16, row) * float(scales[8 + row]));
            break;
        case NL_U6K:
            d = half_at(super, row);
            for (int i = 0; i < kBlock; ++i)
                out[i] = d * float(int8_t(scales[i / 16 * 8 + row])) * float(q[i] - 32);
            return;
        case NL_N4D:
            for (int i = 0; i < kBlock; ++i) q[i] = kTableIq4Nl[q[i]];
            break;
        case NL_N4E:
            for (int i = 0; i < kBlock; ++i) q[i] = kTableMxfp4[q[i]];
            break;
        default: break;
    }
    for (int i = 0; i < kBlock; ++i) out[i] = d * float(q[i] - offset) + m;
}

void dequantize_row(int64_t kind, const uint8_t* group, int row, int64_t cols, float* out) {
    const KindLayout& layout = kLayouts[kind];
    if (layout.value) {
        const uint8_t* p = group + row * layout.value;
        for (int64_t k = 0; k < cols; ++k, p += kRows * layout.value) {
            out[k] = kind == NL_F32   ? float_of_bits(load_u32(p))
                     : kind == NL_F16 ? float_of_half(load_u16(p))
                                      : float_of_bits(uint32_t(load_u16(p)) << 16);
        }
        return;
    }
    const Planes planes = planes_of(kind, cols);
    uint8_t* base = const_cast<uint8_t*>(group);
    for (int64_t b = 0; b < cols / kBlock; ++b) {
        const Lane lane = {base + b * layout.quants, base + planes.high + b * layout.high,
                           base + planes.scales + b * layout.scales,
                           base + planes.super + b / 8 * layout.super, row};
        dequantize_block(kind, lane, out + b * kBlock);
    }
}

}  // namespace
}  // namespace nl

int64_t nl_kind_of(int64_t ggml_type) { return nl::kind_of(ggml_type); }

int64_t nl_packed_bytes(int64_t kind, int64_t rows, int64_t cols) {
    if (kind < 0 || kind >= NL_KINDS || rows < 0 || !nl::fits(kind, cols)) return -1;
    return nl::groups_of(rows) * nl::planes_of(kind, cols).group;
}

int64_t nl_retile(int64_t ggml_type, const uint8_t* source, int64_t row_bytes, int64_t rows, int64_t cols,
                  uint8_t* out, int64_t begin, int64_t end) {
    const int64_t kind = nl::kind_of(ggml_type);
    if (kind < 0 || !nl::fits(kind, cols)) return -1;
    const nl::Planes planes = nl::planes_of(kind, cols);
    for (int64_t g = begin; g < end; ++g) {
        uint8_t* group = out + g * planes.group;
        if ((g + 1) * nl::kRows > rows) memset(group, 0, size_t(planes.group));  // the rows of padding
        for (int row = 0; row < nl::kRows && g * nl::kRows + row < rows; ++row) {
            const uint8_t* from = source + (g * nl::kRows + row) * row_bytes;
            nl::pack_row_of(ggml_type, from, cols, planes, group, row);
        }
    }
    return 0;
}

int64_t nl_embed(const NlMatrix* matrix, const int32_t* ids, float scale, float* out, int64_t out_stride,
                 int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
        int64_t row = ids[r], s = 0;
        if (row < 0) return -1;
        while (s < matrix->segment_count && row >= matrix->segments[s].rows)
            row -= matrix->segments[s++].rows;
        if (s == matrix->segment_count) return -1;
        const NlSegment& segment = matrix->segments[s];
        const int64_t group_bytes = nl::planes_of(segment.kind, matrix->cols).group;
        const uint8_t* group = segment.data + row / nl::kRows * group_bytes;
        float* to = out + r * out_stride;
        nl::dequantize_row(segment.kind, group, int(row % nl::kRows), matrix->cols, to);
        for (int64_t k = 0; k < matrix->cols; ++k) to[k] *= scale;
    }
    return 0;
}
