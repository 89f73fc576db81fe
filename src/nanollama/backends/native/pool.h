// Threads that work through a sequence of phases, each a number of units that may run in any order and at
// once.
//
// Units are handed out in chunks, and a phase ends when its last unit is done, not when every thread has come
// by: a thread that the system has taken off its core holds nobody up unless it holds a chunk. Whoever
// finishes the last unit prepares the next phase and runs what is too small to share; the others spin for a
// moment and then sleep.
#pragma once
#include <stdint.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace nl {

// What a pool runs. `next` is called by one thread at a time, after every unit of the phase before is done.
class Job {
  public:
    virtual ~Job() = default;
    // Prepares the next phase: its number of units (0: the job is over) and how many make a chunk.
    virtual void next(int64_t* units, int64_t* chunk) = 0;
    // Runs units [begin, end) of the current phase.
    virtual void run(int64_t begin, int64_t end) = 0;
};

class Pool {
  public:
    explicit Pool(int64_t threads);
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    int64_t threads() const { return int64_t(workers_.size()) + 1; }
    // Runs a job to its end; the calling thread takes part.
    void run(Job* job);

  private:
    void work(bool is_caller);
    void work_on(uint32_t phase);
    void open_phase();
    uint32_t wait_for_change(uint32_t seen);

    std::vector<std::thread> workers_;
    std::atomic<Job*> job_{nullptr};
    // The ticket: phase number in the upper half, next unit in the lower. A thread that comes late with an
    // old phase number can't take a unit of a newer phase.
    std::atomic<uint64_t> ticket_{0};
    std::atomic<uint32_t> phase_{1};  // even: a phase of a job; odd: idle
    std::atomic<int64_t> units_{0};
    std::atomic<int64_t> chunk_{1};
    std::atomic<int64_t> done_{0};
    std::atomic<bool> stop_{false};
    std::atomic<int> sleepers_{0};
    std::mutex mutex_;
    std::condition_variable changed_;
};

}  // namespace nl
