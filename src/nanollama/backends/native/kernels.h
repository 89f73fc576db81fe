// The C ABI of the CPU kernels: plain structs, and one table of function pointers per instruction set.
//
// Nothing here allocates, locks or keeps state between calls. Every kernel takes a half-open range [begin,
// end) of work units, so that a thread pool can hand the units out in any order and any number of chunks: the
// result is the same to the bit. It is also the same to the bit whatever the number of activation rows in the
// call (batch invariance).
#pragma once
#include <stdint.h>

extern "C" {

// One row range of a weight matrix in R8 layout (layout.h): groups of 8 output rows, the last one padded with
// zeros.
struct NlSegment {
    const uint8_t* data;  // 64-byte aligned, nl_packed_bytes(kind, rows, cols) long
    int64_t rows;         // output rows without padding
    int64_t out_column;   // column of the output that row 0 is written to
    int64_t kind;         // NlKind
};

// A weight matrix of shape [sum of rows, cols]. q, k and v of one layer are one matrix of up to three
// segments, each with its own kind. Work units of a matmul are the groups of all segments, numbered through.
struct NlMatrix {
    const NlSegment* segments;
    int64_t segment_count;
    int64_t cols;
};

// Activation rows, twice: as float32 (for the float kinds; may be null) and quantized (for the others; may be
// null). `meta` holds four floats per 32 inputs: scale, scale * sum(q), and the same sum over either half of
// the 32. For weights of finer types there are `words`, which keep what rounding to `quants` loses: 254 times
// as fine, four inputs in the order 0, 2, 1, 3 (so that words come out of bytes with a shift). Else both are
// null.
struct NlActivations {
    const float* values;  // [rows, stride]
    int64_t stride;
    int8_t* quants;  // [rows, cols], within -127..127
    float* meta;     // [rows, cols / 32, 4]
    int64_t cols;
    int16_t* words;    // [rows, cols]: 254 * (quants + rest)
    float* word_sums;  // [rows, cols / 32]: scale / 254 * sum(words)
};

// The keys and values of one layer, in float16 or float32, in blocks of block_size tokens, a multiple of 16:
//   keys   [block][kv_head][token / 16][head_dim][16 tokens]
//   values [block][kv_head][head_dim / 16][token][16 dims]
// Both products of attention then run over panels of 16 lanes that are contiguous in the order they are read.
struct NlCache {
    void* keys;
    void* values;
    int64_t is_float32;  // the numbers of both, else float16
    int64_t block_size;
    int64_t kv_heads;
    int64_t head_dim;      // a multiple of 16
    int64_t block_stride;  // numbers from one block to the next: other layers may lie in between
};

// What one attention call works on. The query of row r of item i sits at `position + r` and sees the tokens
// at (position + r - window, position + r], or all up to its own where window is 0.
struct NlAttention {
    NlCache cache;
    const float* query;  // [rows, query_stride], the heads one after the other
    int64_t query_stride;
    const int32_t* block_tables;  // [sequences, block_table_stride]
    int64_t block_table_stride;
    int64_t heads;   // a multiple of kv_heads
    int64_t window;  // 0: no sliding window
    float scale;     // factor on q.k
    float softcap;   // 0: none; otherwise cap * tanh(score / cap)
    float* out;      // [rows, out_stride]
    int64_t out_stride;
    float* partials;     // [slots, heads, head_dim + 2]: accumulator, maximum, sum
    const float* sinks;  // [heads]: a score more in each row's softmax, of no token; or null
};

// Up to 16 query rows of one sequence at consecutive positions, over the spans [span_begin, span_end) of the
// cache (a span is 256 tokens, counted from token 0). With slot >= 0 it is one row and one span, and its
// unfinished result goes to that slot, to be merged later. The result does not depend on how rows and spans
// were cut into items.
struct NlAttentionItem {
    int32_t row, rows, sequence, position, span_begin, span_end, slot;
};

// Row `row` is the merge of the slots [slot, slot + slots), which are its spans in order.
struct NlAttentionMerge {
    int32_t row, slot, slots;
};

// Where a step's rows go in a mixture of experts. A row has `per_token` choices, best first. Sorted by
// expert, the choices of all rows are the places that the experts' matrices work on.
struct NlRouting {
    int64_t experts;
    int64_t per_token;
    int64_t normalized;  // a row's shares sum to 1 over the chosen experts, not over all
    int32_t* chosen;     // [rows, per_token]
    float* shares;       // [rows, per_token]
    int32_t* places;     // [rows, per_token]: where each choice is
    int32_t* rows;       // [rows * per_token]: whose choice is at each place
    int32_t* ends;       // [experts]: the place behind each expert's last
    int32_t* active;     // the experts that were chosen, ascending
    int64_t active_count;
};

// What bias and penalties change in each row of logits; sampling/edits.py says how.
struct NlEdits {
    const int64_t* begins;     // [rows + 1]: row r has [begins[r], begins[r + 1]); null: there are none
    const int32_t* token_ids;  // [edits], each of a row once
    const float* times;        // [edits]
    const float* bias;         // [edits]
    const float* factors;      // [rows, 3]: repeat, frequency, presence
};

// The highest logits of each row, behind its edits. A row with a NaN has NaN for its first.
struct NlChoice {
    NlEdits edits;
    int64_t k;      // at most the logits of a row
    int32_t* ids;   // [rows, k]
    float* logits;  // [rows, k]: descending, equals in the order of ids
};

enum NlKind {
    NL_U4D,
    NL_U4DM,
    NL_U5D,
    NL_U5DM,
    NL_S8D,
    NL_U4K,
    NL_U5K,
    NL_U6K,
    NL_N4D,
    NL_N4E,
    NL_F16,
    NL_BF16,
    NL_F32,
    NL_KINDS
};

enum NlActivation { NL_SILU, NL_GELU_TANH, NL_CLAMPED_SWIGLU };

// One instruction set's kernels. "units" says what [begin, end) counts.
struct NlKernels {
    const char* name;

    // out[r, out_column + i] = sum_k W[i, k] x[r, k] (+ bias[out_column + i]).
    // units: groups of 8 weight rows, over all segments
    // next: the weights that this thread will probably read after these, to fetch them in time, or null.
    void (*matmul)(const NlMatrix*, const NlActivations*, int64_t rows, float* out, int64_t out_stride,
                   const float* bias, int64_t begin, int64_t end, const uint8_t* next);

    // Fills x->quants and x->meta from x->values. units: blocks of 32, row after row
    void (*quantize)(const NlActivations* x, int64_t begin, int64_t end);

    // x += add (if add); y = x / sqrt(mean(x^2) + eps) * weight; y goes to `out` as float32 (if out; out may
    // be x) and to `quantized` (if quantized). weight may be null. units: rows
    void (*rms_norm)(float* x, int64_t stride, int64_t cols, const float* add, int64_t add_stride,
                     const float* weight, float eps, float* out, int64_t out_stride,
                     const NlActivations* quantized, int64_t begin, int64_t end);

    // x += add, and to `quantized` as well (if quantized; cols is then a multiple of 32). units: rows
    void (*add)(float* x, int64_t stride, int64_t cols, const float* add, int64_t add_stride,
                const NlActivations* quantized, int64_t begin, int64_t end);

    // Rotates element i with element i + rope_dim / 2 of each head, in place.
    // cos and sin: [positions, rope_dim / 2]. units: rows
    void (*rope)(float* x, int64_t stride, int64_t heads, int64_t head_dim, int64_t rope_dim,
                 const int32_t* positions, const float* cos, const float* sin, int64_t begin, int64_t end);

    // out = activation(gate) * up; up may be null. units: blocks of 32 columns, row after row; the last of a
    // row may be shorter, where nothing is quantized
    void (*activate)(int64_t activation, const float* gate, const float* up, int64_t stride, int64_t cols,
                     float* out, int64_t out_stride, const NlActivations* quantized, int64_t begin,
                     int64_t end);

    // x = cap * tanh(x / cap). units: blocks of 32 columns, row after row, the last of a row may be shorter
    void (*softcap)(float* x, int64_t stride, int64_t cols, float cap, int64_t begin, int64_t end);

    // Fills `chosen` and `shares` from scores [rows, experts]: the largest, of equals the first, and their
    // softmax. A row with a NaN has NaN for its shares. units: rows
    void (*route)(const NlRouting*, const float* scores, int64_t stride, int64_t begin, int64_t end);

    // out[r] = sum of shares[r, j] * x[places[r, j]], in the order of j. units: rows
    void (*combine)(const NlRouting*, const float* x, int64_t stride, int64_t cols, float* out,
                    int64_t out_stride, int64_t begin, int64_t end);

    // Edits the logits and finds the highest of each row. units: rows
    void (*choose)(const NlChoice*, float* logits, int64_t stride, int64_t cols, int64_t begin, int64_t end);

    // Writes key and value rows [rows, kv_heads * head_dim] to their slots (block * block_size + offset).
    // units: rows
    void (*store_kv)(const NlCache*, const float* key, const float* value, int64_t stride,
                     const int64_t* slots, int64_t begin, int64_t end);

    // units: item * kv_heads + kv_head
    // next: the unit that will probably follow on this thread, to fetch for, or -1.
    void (*attention)(const NlAttention*, const NlAttentionItem*, int64_t begin, int64_t end, int64_t next);

    // units: merge * heads + head
    void (*attention_merge)(const NlAttention*, const NlAttentionMerge*, int64_t begin, int64_t end);
};

#pragma GCC visibility push(default)  // the rest of the library stays hidden

// The best variant this processor runs (name null), or the one of that name; null if it cannot run here.
const NlKernels* nl_kernels(const char* name);

// Names of all variants compiled in, null at and after the end.
const char* nl_variant(int64_t index);

// The R8 kind that holds a GGUF tensor type exactly, or -1; and bytes of a packed matrix, or -1.
int64_t nl_kind_of(int64_t ggml_type);
int64_t nl_packed_bytes(int64_t kind, int64_t rows, int64_t cols);

// Re-tiles GGUF rows, row_bytes apart, into R8 groups [begin, end). Returns 0, or -1 where the type or the
// number of columns has no packed form.
int64_t nl_retile(int64_t ggml_type, const uint8_t* source, int64_t row_bytes, int64_t rows, int64_t cols,
                  uint8_t* out, int64_t begin, int64_t end);

// out[r] = scale * row ids[r] of the matrix, as float32. Returns 0, or -1 if an id is out of range.
// units: rows
int64_t nl_embed(const NlMatrix*, const int32_t* ids, float scale, float* out, int64_t out_stride,
                 int64_t begin, int64_t end);

// Zeroed memory at a 2 MiB boundary, null if there is none; in huge pages if wanted and granted.
void* nl_arena_alloc(int64_t bytes, int64_t huge_pages);
void nl_arena_free(void* arena, int64_t bytes);

// Reads every cache line of the range and returns a checksum: the yardstick for memory bandwidth.
uint64_t nl_read(const uint8_t* data, int64_t bytes);

#pragma GCC visibility pop
}
