// Replaying: what each kind of record counts, how it is cut into chunks, and which kernel runs it.
#include "tape.h"

#include <string.h>
#include <time.h>

#include <algorithm>
#include <new>
#include <system_error>

#include "layout.h"
#include "pool.h"

struct NlPool {
    nl::Pool pool;
    explicit NlPool(int64_t threads) : pool(threads) {}
};

namespace nl {
namespace {

// Up to this many elements, handing a record out costs more than running it: whoever finished the phase
// before does it alone.
constexpr int64_t kSmall = 4096;

// Weights in a chunk of a matrix multiplication: of 4-bit ones, these are 64 to 512 KB.
constexpr int64_t kLeastWeights = 128 << 10, kMostWeights = 1 << 20;
constexpr int64_t kFewRows = 16;  // up to here a chunk takes as long as its weights need from memory

int64_t divided_up(int64_t n, int64_t by) { return (n + by - 1) / by; }

int64_t now_ns() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return int64_t(t.tv_sec) * 1000000000 + t.tv_nsec;
}

// Sorts the choices of `rows` rows by expert, those of an expert in the order of rows.
void group(NlRouting& routing, int64_t rows) {
    const int64_t per_token = routing.per_token, choices = rows * per_token;
    int32_t* ends = routing.ends;
    std::fill_n(ends, routing.experts, 0);
    for (int64_t i = 0; i < choices; ++i) ++ends[routing.chosen[i]];
    routing.active_count = 0;
    for (int32_t expert = 0, place = 0; expert < routing.experts; ++expert) {
        if (ends[expert]) routing.active[routing.active_count++] = expert;
        place += ends[expert];
        ends[expert] = place - ends[expert];  // where it begins, until its choices have moved that to its end
    }
    for (int64_t i = 0; i < choices; ++i) {
        const int32_t place = ends[routing.chosen[i]]++;
        routing.places[i] = place;
        routing.rows[place] = int32_t(i / per_token);
    }
}

class Replay final : public Job {
  public:
    Replay(const NlKernels* kernels, const NlOp* ops, int64_t count, const NlStep* step, int64_t threads,
           int64_t* elapsed)
        : k_(kernels), ops_(ops), count_(count), step_(step), threads_(threads), elapsed_(elapsed) {}

    void next(int64_t* units, int64_t* chunk) override {
        for (;;) {
            note_time();
            if (++at_ == count_) {
                *units = 0;
                return;
            }
            const int64_t n = units_of(ops_[at_]);
            if (n > 1 && work_of(ops_[at_]) > kSmall && threads_ > 1) {
                *units = n;
                *chunk = chunk_of(ops_[at_], n);
                return;
            }
            if (n > 0) run(0, n);
        }
    }

    void run(int64_t begin, int64_t end) override;

  private:
    void run_rare(const NlOp& op, int64_t begin, int64_t end) const;
    void run_experts(const NlOp& op, int64_t begin, int64_t end) const;

    int64_t rows_of(const NlOp& op) const {
        return (op.on_logit_rows ? step_->logit_rows : step_->rows) * op.per_token;
    }

    // What [begin, end) counts, by kind of record.
    int64_t units_of(const NlOp& op) const {
        const int64_t rows = rows_of(op);
        switch (op.kind) {
            case NL_OP_MATMUL: return rows ? groups_of(op) : 0;
            case NL_OP_ATTEND: return step_->plans[op.plan].item_count * op.attention->cache.kv_heads;
            case NL_OP_MERGE: return step_->plans[op.plan].merge_count * op.attention->heads;
            case NL_OP_EXPERTS: return op.routing->active_count * groups_of(op);
            case NL_OP_QUANTIZE:
            case NL_OP_ACTIVATE:
            case NL_OP_SOFTCAP: return rows * divided_up(op.cols, 32);
            case NL_OP_GROUP: return 1;
            case NL_OP_CHOOSE: return step_->choice ? rows : 0;
            default: return rows;
        }
    }

    static int64_t groups_of(const NlOp& op) {
        int64_t groups = 0;
        for (int64_t i = 0; i < op.matrix->segment_count; ++i)
            groups += nl::groups_of(op.matrix->segments[i].rows);
        return groups;
    }

    // Roughly how many elements a record touches, to tell small from large.
    int64_t work_of(const NlOp& op) const {
        switch (op.kind) {
            case NL_OP_MATMUL:
            case NL_OP_EXPERTS:
            case NL_OP_ATTEND: return kSmall + 1;
            case NL_OP_HEAD_NORM:
            case NL_OP_RESIZE:
            case NL_OP_ROPE:
            case NL_OP_STORE: return rows_of(op) * op.heads * op.head_dim;
            case NL_OP_MERGE: return units_of(op) * op.attention->cache.head_dim;
            default: return rows_of(op) * op.cols;
        }
    }

    // Chunks large enough to be worth a ticket and small enough that nobody waits long for the last one.
    int64_t chunk_of(const NlOp& op, int64_t units) const {
        if (op.kind == NL_OP_ATTEND) return attention_chunk(step_->plans[op.plan], units);
        if (op.kind != NL_OP_MATMUL && op.kind != NL_OP_EXPERTS) return divided_up(units, threads_ * 4);
        // Weights are fetched well ahead of their use, which small chunks waste; and while the last chunk
        // runs, nobody else has work. So threads get the same number of chunks where a matrix has only a few.
        // Many rows make a chunk long, not large. Tiles take groups of 8 rows in twos.
        const int64_t rows = op.kind == NL_OP_MATMUL ? std::max(rows_of(op), kFewRows) : kFewRows;
        const int64_t least = divided_up(kLeastWeights * kFewRows, 8 * op.cols * rows),
                      most = divided_up(kMostWeights, 8 * op.cols);
        const int64_t turns = std::max<int64_t>(units / (threads_ * least), 1);
        const int64_t even = divided_up(units, threads_ * std::min<int64_t>(turns, 16));
        return (std::min(even, most) + 1) & ~int64_t(1);
    }

    // Decoding fetches the keys of its next unit, and within a chunk that one is certain. The units of a
    // prompt are long, and the later the longer.
    int64_t attention_chunk(const NlAttentionPlan& plan, int64_t units) const {
        return plan.items[plan.item_count - 1].rows == 1 ? divided_up(units, threads_ * 2) : 1;
    }

    // The weights that a thread will probably read after the chunk [begin, end) of a matrix: its next chunk
    // while each thread takes one in turn, or one of the next matrix.
    const uint8_t* weights_after(int64_t begin, int64_t end) const {
        const int64_t units = units_of(ops_[at_]), size = end - begin, others = (threads_ - 1) * size;
        if (end + others < units) return address_of(*ops_[at_].matrix, end + others);
        for (int64_t i = at_ + 1; i < count_; ++i) {
            const NlOp& then = ops_[i];
            if (then.kind != NL_OP_MATMUL) continue;
            const int64_t left = divided_up(units - end, size), groups = groups_of(then);
            const int64_t unit = (threads_ - 1 - left) * chunk_of(then, groups);
            return address_of(*then.matrix, unit < groups ? unit : 0);
        }
        return nullptr;
    }

    void note_time() {
        if (!elapsed_) return;
        const int64_t now = now_ns();
        if (at_ >= 0) elapsed_[ops_[at_].kind] += now - since_;
        since_ = now;
    }

    const NlKernels* k_;
    const NlOp* ops_;
    int64_t count_;
    int64_t at_ = -1;  // the record that runs now
    const NlStep* step_;
    int64_t threads_;
    int64_t* elapsed_;
    int64_t since_ = 0;
};

void Replay::run(int64_t begin, int64_t end) {
    const NlOp& op = ops_[at_];
    const NlStep& step = *step_;
    switch (op.kind) {
        case NL_OP_EMBED:
            nl_embed(op.matrix, step.token_ids + begin, op.value, op.out + begin * op.out_stride,
                     op.out_stride, 0, end - begin);
            break;
        case NL_OP_NORM:
            k_->rms_norm(op.x, op.x_stride, op.cols, op.in, op.in_stride, op.weight, op.value, op.out,
                         op.out_stride, op.quantized, begin, end);
            break;
        case NL_OP_MATMUL:
            k_->matmul(op.matrix, op.quantized, rows_of(op), op.out, op.out_stride, op.bias, begin, end,
                       weights_after(begin, end));
            break;
        case NL_OP_HEAD_NORM:
            for (int64_t row = begin; row < end; ++row) {
                float* heads = op.x + row * op.x_stride;
                k_->rms_norm(heads, op.head_dim, op.head_dim, nullptr, 0, op.weight, op.value, heads,
                             op.head_dim, nullptr, 0, op.heads);
            }
            break;
        case NL_OP_ROPE: {
            const NlRotation& rotation = step.rotations[op.rope];
            k_->rope(op.x, op.x_stride, op.heads, op.head_dim, op.rope_dim, step.positions, rotation.cos,
                     rotation.sin, begin, end);
            break;
        }
        case NL_OP_STORE:
            k_->store_kv(&op.attention->cache, op.x, op.in, op.x_stride, step.slots, begin, end);
            break;
        case NL_OP_ATTEND: {
            const int64_t next = end + (threads_ - 1) * (end - begin);  // the others take those in between
            k_->attention(op.attention, step.plans[op.plan].items, begin, end,
                          next < units_of(op) ? next : -1);
            break;
        }
        case NL_OP_MERGE: k_->attention_merge(op.attention, step.plans[op.plan].merges, begin, end); break;
        case NL_OP_QUANTIZE: k_->quantize(op.quantized, begin, end); break;
        case NL_OP_ACTIVATE:
            k_->activate(op.activation, op.x, op.in, op.x_stride, op.cols, op.out, op.out_stride,
                         op.quantized, begin, end);
            break;
        case NL_OP_GATHER:
            for (int64_t row = begin; row < end; ++row)
                memcpy(op.out + row * op.out_stride, op.x + step.logit_index[row] * op.x_stride,
                       size_t(op.cols) * sizeof(float));
            break;
        case NL_OP_ADD:
            k_->add(op.x, op.x_stride, op.cols, op.in, op.in_stride, op.quantized, begin, end);
            break;
        case NL_OP_SOFTCAP: k_->softcap(op.x, op.x_stride, op.cols, op.value, begin, end); break;
        case NL_OP_CHOOSE: k_->choose(step.choice, op.x, op.x_stride, op.cols, begin, end); break;
        default: run_rare(op, begin, end);
    }
}

// The records that only few models have.
void Replay::run_rare(const NlOp& op, int64_t begin, int64_t end) const {
    switch (op.kind) {
        case NL_OP_RESIZE:
            for (int64_t row = begin; row < end; ++row)
                for (int64_t head = 0; head < op.heads; ++head)
                    memcpy(op.out + row * op.out_stride + head * op.out_head_dim,
                           op.x + row * op.x_stride + head * op.head_dim,
                           size_t(std::min(op.head_dim, op.out_head_dim)) * sizeof(float));
            break;
        case NL_OP_ROUTE: k_->route(op.routing, op.x, op.x_stride, begin, end); break;
        case NL_OP_GROUP: group(*op.routing, rows_of(op)); break;
        case NL_OP_PLACE:
            for (int64_t place = begin; place < end; ++place)
                memcpy(op.out + place * op.out_stride, op.x + op.routing->rows[place] * op.x_stride,
                       size_t(op.cols) * sizeof(float));
            break;
        case NL_OP_EXPERTS: run_experts(op, begin, end); break;
        case NL_OP_COMBINE:
            k_->combine(op.routing, op.x, op.x_stride, op.cols, op.out, op.out_stride, begin, end);
            break;
    }
}

// Units are the groups of the chosen experts' matrices, expert after expert: what no row chose is not read.
void Replay::run_experts(const NlOp& op, int64_t begin, int64_t end) const {
    const NlRouting& routing = *op.routing;
    const int64_t groups = groups_of(op);
    for (int64_t unit = begin; unit < end;) {
        const int64_t expert = routing.active[unit / groups], first = unit - unit % groups;
        const int64_t until = std::min(end, first + groups);
        const int64_t from = expert ? routing.ends[expert - 1] : 0, rows = routing.ends[expert] - from;
        NlActivations x = *op.quantized;
        if (x.values) x.values += from * x.stride;
        if (x.quants) {
            x.quants += from * x.cols;
            x.meta += from * (x.cols / 32) * 4;
        }
        if (x.words) {
            x.words += from * x.cols;
            x.word_sums += from * (x.cols / 32);
        }
        const float* bias = op.bias ? op.bias + expert * op.out_stride : nullptr;
        k_->matmul(op.matrix + expert, &x, rows, op.out + from * op.out_stride, op.out_stride, bias,
                   unit - first, until - first, nullptr);
        unit = until;
    }
}

class Retile final : public Job {
  public:
    Retile(const NlRetile* matrices, int64_t count) : matrix_(matrices - 1), end_(matrices + count) {}

    void next(int64_t* units, int64_t* chunk) override {
        *units = ++matrix_ < end_ ? divided_up(matrix_->rows, 8) : 0;
        *chunk = 16;
    }

    void run(int64_t begin, int64_t end) override {
        const NlRetile& m = *matrix_;
        if (nl_retile(m.ggml_type, m.source, m.row_bytes, m.rows, m.cols, m.out, begin, end) != 0)
            failed_ = true;
    }

    bool failed() const { return failed_; }

  private:
    const NlRetile* matrix_;
    const NlRetile* end_;
    std::atomic<bool> failed_{false};
};

}  // namespace
}  // namespace nl

NlPool* nl_pool_create(int64_t threads) {
    try {
        return new NlPool(threads);
    } catch (const std::system_error&) {
        return nullptr;
    } catch (const std::bad_alloc&) {
        return nullptr;
    }
}

void nl_pool_free(NlPool* pool) { delete pool; }

void nl_replay(NlPool* pool, const NlKernels* kernels, const NlOp* ops, int64_t op_count, const NlStep* step,
               int64_t* elapsed) {
    nl::Replay replay(kernels, ops, op_count, step, pool->pool.threads(), elapsed);
    pool->pool.run(&replay);
}

int64_t nl_pool_retile(NlPool* pool, const NlRetile* matrices, int64_t count) {
    nl::Retile retile(matrices, count);
    pool->pool.run(&retile);
    return retile.failed() ? -1 : 0;
}
