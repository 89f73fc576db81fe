// Which variant runs here, and memory for it: the parts that are the same for all.
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fetch.h"
#include "kernels.h"

namespace nl {
namespace portable {
extern const NlKernels kernels;
}
#if defined(__x86_64__)
namespace avx2 {
extern const NlKernels kernels;
}
namespace avx512 {
extern const NlKernels kernels;
}
#endif

#if defined(__x86_64__)
constexpr long kLargeL1 = 48 << 10;  // Zen 5 has it, Zen 4 and those before have 32 KiB
const bool kPastL2 =
    (__builtin_cpu_init(), __builtin_cpu_is("amd") != 0) && sysconf(_SC_LEVEL1_DCACHE_SIZE) >= kLargeL1;
#else
const bool kPastL2 = false;
#endif

namespace {

struct Variant {
    const NlKernels* kernels;
    bool (*runs_here)();
};

// Best first.
const Variant kVariants[] = {
#if defined(__x86_64__)
    {&avx512::kernels,
     [] {
         return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vnni") &&
                __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
     }},
    {&avx2::kernels,
     [] {
         return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                __builtin_cpu_supports("f16c");
     }},
#endif
    {&portable::kernels, [] { return true; }},
};
constexpr int64_t kVariantCount = sizeof kVariants / sizeof kVariants[0];
constexpr int64_t kHugePage = 2 << 20;

int64_t whole_pages(int64_t bytes) { return (bytes + kHugePage - 1) / kHugePage * kHugePage; }

}  // namespace
}  // namespace nl

const NlKernels* nl_kernels(const char* name) {
    for (const nl::Variant& variant : nl::kVariants) {
        if (name && strcmp(name, variant.kernels->name) != 0) continue;
        if (variant.runs_here()) return variant.kernels;
    }
    return nullptr;
}

const char* nl_variant(int64_t index) {
    return index >= 0 && index < nl::kVariantCount ? nl::kVariants[index].kernels->name : nullptr;
}

void* nl_arena_alloc(int64_t bytes, int64_t huge_pages) {
    if (bytes <= 0) return nullptr;
    // One huge page too many is mapped, and what lies outside the aligned range is given back.
    const int64_t wanted = nl::whole_pages(bytes), mapped = wanted + nl::kHugePage;
    void* memory = mmap(nullptr, size_t(mapped), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return nullptr;
    const uintptr_t start = uintptr_t(memory),
                    aligned = (start + nl::kHugePage - 1) / nl::kHugePage * nl::kHugePage;
    if (aligned > start) munmap(memory, aligned - start);
    const uintptr_t rest = start + uintptr_t(mapped) - (aligned + uintptr_t(wanted));
    if (rest) munmap((void*)(aligned + uintptr_t(wanted)), rest);
#if defined(MADV_HUGEPAGE)
    // Refused on some systems: then pages are small.
    if (huge_pages) madvise((void*)aligned, size_t(wanted), MADV_HUGEPAGE);
#endif
    return (void*)aligned;
}

void nl_arena_free(void* arena, int64_t bytes) {
    if (arena) munmap(arena, size_t(nl::whole_pages(bytes)));
}

uint64_t nl_read(const uint8_t* data, int64_t bytes) {
    typedef uint64_t Words __attribute__((vector_size(64)));
    const int64_t ahead = nl::kPastL2 ? nl::kFetchAhead<true> : nl::kFetchAhead<false>;  // as the kernels do
    Words sums[4] = {};
    int64_t i = 0;
    for (; i + 256 <= bytes; i += 256) {
        Words v[4];
        memcpy(v, data + i, 256);
        nl::fetch_once(data + i + ahead, 256);
        for (int j = 0; j < 4; ++j) sums[j] += v[j];
    }
    const Words total = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    uint64_t sum = 0;
    for (int j = 0; j < 8; ++j) sum += total[j];
    for (; i < bytes; ++i) sum += data[i];
    return sum;
}
