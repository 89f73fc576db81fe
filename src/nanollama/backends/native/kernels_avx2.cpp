// The variant for x86 processors with AVX2, FMA and F16C (Intel since 2013, AMD since 2017).
#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "half.h"
#include "layout.h"
#include "target.h"

#define NL_VARIANT avx2
NL_TARGET("avx2,fma,f16c")
#include "simd_avx2.h"
#include "variant.h"
NL_TARGET_END
#endif
