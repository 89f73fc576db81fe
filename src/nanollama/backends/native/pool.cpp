// How threads share phases; pool.h says what they promise.
#include "pool.h"

#include <signal.h>
#include <time.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace nl {
namespace {

inline void pause_briefly() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

int64_t now_ns() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return int64_t(t.tv_sec) * 1000000000 + t.tv_nsec;
}

// Within a job the next phase is microseconds away, and a sleep costs a wake-up of about fifty; between two
// jobs (a token is being sampled) it is longer. Past that, somebody else has the core or nobody needs us:
// sleep.
constexpr int64_t kSpinInJob = 50'000, kSpinBetweenJobs = 300'000;
constexpr uint64_t kClosed = 0xFFFFFFFF;

// Signals are for the thread that waits for them. One that the system hands to a worker would not wake it.
void leave_signals_to_others() {
    sigset_t signals;
    sigfillset(&signals);
    for (int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT}) sigdelset(&signals, fault);
    pthread_sigmask(SIG_BLOCK, &signals, nullptr);
}

}  // namespace

Pool::Pool(int64_t threads) {
    for (int64_t i = 1; i < threads; ++i)
        workers_.emplace_back([this] {
            leave_signals_to_others();
            work(false);
        });
}

Pool::~Pool() {
    stop_.store(true);
    {
        std::lock_guard<std::mutex> lock(mutex_);
        phase_.fetch_add(2);
    }
    changed_.notify_all();
    for (std::thread& worker : workers_) worker.join();
}

void Pool::run(Job* job) {
    job_.store(job, std::memory_order_relaxed);
    open_phase();
    work(true);
}

// Called by the only thread that knows that nobody works: before the first phase, and by whoever did the last
// unit.
void Pool::open_phase() {
    int64_t units = 0, chunk = 1;
    job_.load(std::memory_order_relaxed)->next(&units, &chunk);
    const uint32_t last = phase_.load(std::memory_order_relaxed);
    // Even numbers are phases of a job, odd ones the idle times between jobs.
    const uint32_t phase = units == 0 ? (last | 1) + (last & 1) * 2 : last + 2 - (last & 1);
    // Closed before `units_` changes, so that no late thread can take a unit of the old phase that was never
    // there.
    ticket_.store(uint64_t(phase) << 32 | kClosed, std::memory_order_relaxed);
    done_.store(0, std::memory_order_relaxed);
    chunk_.store(chunk, std::memory_order_relaxed);
    units_.store(units, std::memory_order_release);
    ticket_.store(uint64_t(phase) << 32, std::memory_order_release);
    phase_.store(phase, std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) > 0) {
        {
            std::lock_guard<std::mutex> lock(mutex_);
        }  // whoever is about to sleep has seen the phase or sleeps by now
        changed_.notify_all();
    }
}

uint32_t Pool::wait_for_change(uint32_t seen) {
    const int64_t until = now_ns() + (seen & 1 ? kSpinBetweenJobs : kSpinInJob);
    for (int64_t spins = 1;; ++spins) {
        const uint32_t phase = phase_.load(std::memory_order_acquire);
        if (phase != seen) return phase;
        pause_briefly();
        if (spins % 64 == 0 && now_ns() > until) break;
    }
    std::unique_lock<std::mutex> lock(mutex_);
    sleepers_.fetch_add(1, std::memory_order_seq_cst);
    changed_.wait(lock, [&] { return phase_.load(std::memory_order_seq_cst) != seen; });
    sleepers_.fetch_sub(1, std::memory_order_relaxed);
    return phase_.load(std::memory_order_acquire);
}

// Takes and runs units of one phase until there are none left to take.
void Pool::work_on(uint32_t phase) {
    // What a thread reads here may be of a later phase than it believes: it then fails to take a ticket of
    // its own phase.
    const int64_t units = units_.load(std::memory_order_acquire),
                  chunk = chunk_.load(std::memory_order_relaxed);
    Job* job = job_.load(std::memory_order_relaxed);
    uint64_t ticket = ticket_.load(std::memory_order_acquire);
    while (uint32_t(ticket >> 32) == phase && int64_t(uint32_t(ticket)) < units) {
        if (!ticket_.compare_exchange_weak(ticket, ticket + uint64_t(chunk), std::memory_order_acq_rel))
            continue;
        const int64_t begin = int64_t(uint32_t(ticket)), end = begin + chunk < units ? begin + chunk : units;
        job->run(begin, end);
        // acq_rel: whoever sees the last unit done sees what all threads wrote, and hands it on with the next
        // phase.
        if (done_.fetch_add(end - begin, std::memory_order_acq_rel) + end - begin == units)
            return open_phase();
        ticket = ticket_.load(std::memory_order_acquire);
    }
}

void Pool::work(bool is_caller) {
    uint32_t phase = phase_.load(std::memory_order_acquire);
    while (!stop_.load(std::memory_order_relaxed)) {
        const bool idle = phase & 1;
        if (idle && is_caller) return;
        if (!idle) work_on(phase);
        phase = wait_for_change(phase);
    }
}

}  // namespace nl
