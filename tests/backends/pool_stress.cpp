// Random jobs on a pool, with an integrity check in every unit: run by test_pool.py, built with a thread
// sanitizer where there is one. Exits 1 and says why if a unit ran twice, never, or before its phase.
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include <atomic>
#include <memory>
#include <random>
#include <vector>

#include "pool.h"

namespace {

// Phases of random sizes. Unit i of a phase writes a number that depends on what all units of the phase
// before wrote.
class Chain final : public nl::Job {
  public:
    Chain(std::mt19937& random, int phases) {
        for (int i = 0; i < phases; ++i) sizes_.push_back(1 + int64_t(random() % 40));
        chunk_ = 1 + int64_t(random() % 7);
        data_.resize(sizes_.size());
    }

    void next(int64_t* units, int64_t* chunk) override {
        if (at_ >= 0) check();
        if (++at_ == int64_t(sizes_.size())) {
            *units = 0;
            return;
        }
        data_[size_t(at_)].assign(size_t(sizes_[size_t(at_)]), 0);
        *units = sizes_[size_t(at_)];
        *chunk = chunk_;
    }

    void run(int64_t begin, int64_t end) override {
        std::vector<int64_t>& now = data_[size_t(at_)];
        if (begin < 0 || begin >= end || end > int64_t(now.size())) fail("a chunk lies outside its phase");
        const int64_t before = at_ ? sum(data_[size_t(at_) - 1]) % 1000 : 0;
        for (int64_t i = begin; i < end; ++i) now[size_t(i)] += before + i + 1;
    }

    int64_t phases_run() const { return at_; }

  private:
    static int64_t sum(const std::vector<int64_t>& values) {
        int64_t total = 0;
        for (int64_t value : values) total += value;
        return total;
    }

    static void fail(const char* why) {
        fprintf(stderr, "%s\n", why);
        exit(1);
    }

    void check() {
        const int64_t before = at_ ? sum(data_[size_t(at_) - 1]) % 1000 : 0;
        for (size_t i = 0; i < data_[size_t(at_)].size(); ++i)
            if (data_[size_t(at_)][i] != before + int64_t(i) + 1)
                fail("a unit ran twice, never, or too early");
    }

    std::vector<int64_t> sizes_;
    std::vector<std::vector<int64_t>> data_;
    int64_t chunk_ = 1, at_ = -1;
};

}  // namespace

int main(int argc, char** argv) {
    const int jobs = argc > 1 ? atoi(argv[1]) : 1000;
    std::mt19937 random(7);
    for (int64_t threads : {1, 2, 3, 8}) {
        nl::Pool pool(threads);
        for (int i = 0; i < jobs; ++i) {
            Chain chain(random, int(random() % 12));
            pool.run(&chain);
            // Now and then long enough for the threads to fall asleep between two jobs.
            if (i % 200 == 199) {
                timespec pause = {0, 2'000'000};
                nanosleep(&pause, nullptr);
            }
        }
    }
    puts("ok");
}
