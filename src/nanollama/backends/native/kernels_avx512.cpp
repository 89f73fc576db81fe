// The variant for x86 processors with AVX-512 VNNI (Intel since 2019, AMD since 2022). The layout has eight
// lanes, and what counts is the four-way byte product and twice the registers: vectors are of 256 bits but
// where a matmul has more than one activation row. There, 512 bits nearly double its speed (Zen 5).
#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "half.h"
#include "layout.h"
#include "target.h"

#define NL_VARIANT avx512
NL_TARGET("avx2,fma,f16c,avx512f,avx512vl,avx512bw,avx512vnni")
#include "simd_avx512.h"
#include "variant.h"
NL_TARGET_END
#endif
