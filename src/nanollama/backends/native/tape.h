// The tape: one step of a model as an array of records, and the threads that replay it.
//
// Python describes a model once, as records over fixed buffers. A step only says how many rows there are,
// where their tokens lie in the cache, and which rows' logits are wanted; one call replays the records for
// it.
#pragma once
#include <stdint.h>

#include "kernels.h"

extern "C" {

enum NlOpKind {
    NL_OP_EMBED,      // out = scale * embedding of the step's tokens
    NL_OP_NORM,       // x += add (if add); out and quantized = rms_norm(x)
    NL_OP_MATMUL,     // out = matrix * quantized (or in, for the float kinds) + bias
    NL_OP_HEAD_NORM,  // each head of x = rms_norm(head)
    NL_OP_ROPE,       // rotate the heads of x
    NL_OP_STORE,      // keys x and values in to the cache
    NL_OP_ATTEND,     // the spans and rows of attention
    NL_OP_MERGE,      // the spans of one row become one
    NL_OP_QUANTIZE,   // quantized = in
    NL_OP_ACTIVATE,   // out and quantized = activation(x) * in
    NL_OP_GATHER,     // out = the rows of x whose logits are wanted
    NL_OP_ADD,        // x += in; quantized = x
    NL_OP_SOFTCAP,    // x = value * tanh(x / value)
    NL_OP_RESIZE,     // out = the heads of x, each in out_head_dim floats
    NL_OP_ROUTE,      // each row's experts and their shares, by the scores x
    NL_OP_GROUP,      // the rows of all experts, sorted by expert
    NL_OP_PLACE,      // out = the rows of x at their places (cols: words of four bytes)
    NL_OP_EXPERTS,    // out = each expert's matrix * quantized (or in) + bias, for its places
    NL_OP_COMBINE,    // out = the sum of each row's shares of x
    NL_OP_CHOOSE,     // the highest of x, in steps that want them
    NL_OP_KINDS
};

// One record. Which fields it uses follows from its kind; strides are floats from row to row.
struct NlOp {
    int32_t kind;
    int32_t on_logit_rows;  // its rows are the logit rows, not all tokens
    int32_t per_token;      // rows for each of them: one, or as many as there are choices of experts
    int32_t activation;
    int32_t heads, head_dim, rope_dim, out_head_dim;
    int32_t plan;  // which attention plan of the step
    int32_t rope;  // which rotation table of the step
    float value;   // epsilon, scale or cap
    float* x;
    int64_t x_stride;
    const float* in;
    int64_t in_stride;
    float* out;
    int64_t out_stride;
    int64_t cols;
    const float* weight;     // of a norm
    const NlMatrix* matrix;  // of experts: the first of as many, all with the same rows
    const float* bias;       // of experts: one after the other
    const NlActivations* quantized;
    const NlAttention* attention;
    NlRouting* routing;
};

// The items of one attention window: layers with the same window share them.
struct NlAttentionPlan {
    const NlAttentionItem* items;
    int64_t item_count;
    const NlAttentionMerge* merges;
    int64_t merge_count;
};

// Cosines and sines of one rotation by position: [positions, rope_dim / 2].
struct NlRotation {
    const float* cos;
    const float* sin;
};

struct NlStep {
    int64_t rows;
    int64_t logit_rows;
    const int32_t* token_ids;    // [rows]
    const int32_t* positions;    // [rows]: each token's place in its sequence, and in the rotation tables
    const int64_t* slots;        // [rows]: where each token goes in the cache
    const int64_t* logit_index;  // [logit_rows]
    const NlAttentionPlan* plans;
    const NlRotation* rotations;
    const NlChoice* choice;  // for the logit rows, or null
};

// One matrix to pack: `rows` rows of a GGUF type, `row_bytes` from one to the next, to R8 groups at `out`.
struct NlRetile {
    int64_t ggml_type;
    const uint8_t* source;
    int64_t row_bytes;
    int64_t rows;
    int64_t cols;
    uint8_t* out;
};

struct NlPool;

#pragma GCC visibility push(default)

// `threads` in all, the caller's own included; null if they could not be started.
NlPool* nl_pool_create(int64_t threads);
void nl_pool_free(NlPool*);

// Replays the records for one step, on the calling thread and the pool's. One call at a time for each pool.
// With `elapsed` (nanoseconds by op kind, NL_OP_KINDS long) the time of each record is added there.
void nl_replay(NlPool*, const NlKernels*, const NlOp* ops, int64_t op_count, const NlStep* step,
               int64_t* elapsed);

// Runs nl_retile for each matrix, over all its groups of 8 rows, on the calling thread and the pool's.
// Returns -1 if one of them can't be packed.
int64_t nl_pool_retile(NlPool*, const NlRetile* matrices, int64_t count);

#pragma GCC visibility pop
}
