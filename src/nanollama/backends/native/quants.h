// How the packed kinds of R8 read (layout.h): quants to bytes, scales to floats.
//
// The readers are templates over where the weights come from, which also says how long the vectors are: a
// Group has the layout's eight rows; a variant with vectors twice that long reads a Pair (tile_wide.h).
#pragma once
#include "fetch.h"
#include "layout.h"

namespace nl {
namespace NL_VARIANT {

// One group's planes, advanced to the block at hand. The readers below take offsets from there.
struct Group {
    typedef F8 Floats;
    typedef I8 Ints;
    typedef B32 Bytes;
    const uint8_t *quants, *high, *scales, *super;

    NL_MEMBER Bytes quant_bytes(int at) const { return load_bytes(quants + at); }
    NL_MEMBER Bytes high_bytes(int at) const { return load_bytes(high + at); }
    NL_MEMBER Floats scale_halves(int vector) const { return from_half(scales + 16 * vector); }
    NL_MEMBER Floats super_halves(int vector) const { return from_half(super + 16 * vector); }
    NL_MEMBER Ints scale_bytes(int vector) const { return ints_from_bytes(scales + 8 * vector); }
};

// From block b to the next.
template <class Q, class S, class From>
NL_INLINE void advance(From& from, int64_t b) {
    from.quants += Q::quants;
    from.high += Q::high;
    from.scales += S::bytes;
    if constexpr (S::super_bytes != 0) from.super += b % 8 == 7 ? S::super_bytes : 0;
}

// ---- fetching ahead ---------------------------------------------------------------------------------------

// Weights come from memory once, in order. While a tile works, what lies at least this far ahead is fetched
// at the same pace. The hardware alone, which stops at every 4 KiB, gets half as much; and a stream for each
// of a tile's groups a tenth less than one over all of them.
// Here that distance in whole tiles of G groups, as groups.
template <bool past_l2, int G>
NL_INLINE int64_t fetch_distance(const Planes& planes) {
    const int64_t bytes = G * planes.group;
    return (kFetchAhead<past_l2> + bytes - 1) / bytes * G;
}

// Bytes of a group for each of its blocks, over all planes.
template <class Q, class S>
constexpr int64_t block_bytes() {
    return Q::quants + Q::high + S::bytes + S::super_bytes * kBlock / kSuper;
}

// Quantized activation rows, from a tile's first one on.
struct Rows {
    const int8_t* quants;
    const float* meta;
    const int16_t* words;
    const float* word_sums;

    Rows(const NlActivations& x, int64_t row)
        : quants(x.quants + row * x.cols),
          meta(x.meta + row * (x.cols / kBlock) * 4),
          words(x.words ? x.words + row * x.cols : nullptr),
          word_sums(x.words ? x.word_sums + row * (x.cols / kBlock) : nullptr) {}
};

// ---- how quants unpack: step j (0..3) of a block to its `lo` and `hi` vectors -----------------------------

struct Bits4 {
    static constexpr int max_weight = 15, quants = 128, high = 0;
    static constexpr bool is_signed = false;
    template <class From, class Bytes>
    NL_INLINE void unpack(const From& from, int j, Bytes& lo, Bytes& hi) {
        const Bytes v = from.quant_bytes(32 * j);
        lo = v & 15;
        hi = right(v, 4) & 15;
    }
};

struct Bits5 {
    static constexpr int max_weight = 31, quants = 128, high = 32;
    static constexpr bool is_signed = false;
    template <class From, class Bytes>
    NL_INLINE void unpack(const From& from, int j, Bytes& lo, Bytes& hi) {
        Bits4::unpack(from, j, lo, hi);
        const Bytes bits = from.high_bytes(0);
        lo |= left(bits, 4 - j) & 16;
        hi |= right(bits, j) & 16;
    }
};

struct Bits6 {
    static constexpr int max_weight = 63, quants = 128, high = 64;
    static constexpr bool is_signed = false;
    template <class From, class Bytes>
    NL_INLINE void unpack(const From& from, int j, Bytes& lo, Bytes& hi) {
        Bits4::unpack(from, j, lo, hi);
        const Bytes bits = from.high_bytes(32 * (j / 2));
        lo |= (j % 2 ? bits : left(bits, 4)) & 48;
        hi |= (j % 2 ? right(bits, 2) : left(bits, 2)) & 48;
    }
};

struct Bits8 {
    static constexpr int max_weight = 128, quants = 256, high = 0;
    static constexpr bool is_signed = true;
    template <class From, class Bytes>
    NL_INLINE void unpack(const From& from, int j, Bytes& lo, Bytes& hi) {
        lo = from.quant_bytes(64 * j);
        hi = from.quant_bytes(64 * j + 32);
    }
};

template <const int8_t* table>
struct Codebook {
    static constexpr int max_weight = 127, quants = 128, high = 0;
    static constexpr bool is_signed = true;
    template <class From, class Bytes>
    NL_INLINE void unpack(const From& from, int j, Bytes& lo, Bytes& hi) {
        Bits4::unpack(from, j, lo, hi);
        lo = lookup(table, lo);
        hi = lookup(table, hi);
    }
};

// ---- how scales read: weight = d * quant + m, for the rows of a vector ------------------------------------

template <int offset>
struct ScaleHalf {  // m follows from the offset of the quants
    static constexpr int bytes = 16, super_bytes = 0;
    static constexpr bool has_min = offset != 0, halves = false;
    template <class From, class Floats>
    NL_INLINE void read(const From& from, Floats& d, Floats& m) {
        d = from.scale_halves(0);
        m = d * float(-offset);
    }
};

struct ScaleHalfMin {
    static constexpr int bytes = 32, super_bytes = 0;
    static constexpr bool has_min = true, halves = false;
    template <class From, class Floats>
    NL_INLINE void read(const From& from, Floats& d, Floats& m) {
        d = from.scale_halves(0);
        m = from.scale_halves(1);
    }
};

struct ScaleSuper {  // Q4_K, Q5_K: 6-bit scale and minimum of the block, times float16 of the super-block
    static constexpr int bytes = 16, super_bytes = 32;
    static constexpr bool has_min = true, halves = false;
    template <class From, class Floats>
    NL_INLINE void read(const From& from, Floats& d, Floats& m) {
        d = from.super_halves(0) * to_float(from.scale_bytes(0));
        m = -(from.super_halves(1) * to_float(from.scale_bytes(1)));
    }
};

struct ScaleSuperHalves {  // Q6_K: a signed scale per 16 inputs, which the integer sums take in
    static constexpr int bytes = 16, super_bytes = 16;
    static constexpr bool has_min = false, halves = true;
    template <class From, class Floats>
    NL_INLINE void read(const From& from, Floats& d, Floats& m) {
        d = from.super_halves(0);
        m = d * -32.0f;
    }
};

struct ScaleExponent {  // 2^(e - 128); two are subnormal, and the larger of both readings is right
    static constexpr int bytes = 8, super_bytes = 0;
    static constexpr bool has_min = false, halves = false;
    template <class From, class Floats>
    NL_INLINE void read(const From& from, Floats& d, Floats& m) {
        typedef typename From::Ints Ints;
        const Ints e = from.scale_bytes(0), zero = {};
        const Ints normal = (e - 1) << 23, subnormal = e > 0 ? zero + 0x00400000 : zero + 0x00200000;
        d = (Floats)max(normal, subnormal);
        m = Floats{};
    }
};

}  // namespace NL_VARIANT
}  // namespace nl
