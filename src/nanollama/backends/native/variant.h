// The kernels of one variant, gathered in its table. Included once, after the variant's primitives.
#pragma once
#include "attention.h"
#include "choice.h"
#include "elementwise.h"
#include "experts.h"
#include "matmul.h"

#define NL_STRING(x) #x
#define NL_NAME(x) NL_STRING(x)

namespace nl {
namespace NL_VARIANT {

extern const NlKernels kernels;
const NlKernels kernels = {
    NL_NAME(NL_VARIANT),
    matmul,
    quantize,
    rms_norm,
    add,
    rope,
    activate,
    softcap,
    route,
    combine,
    choose,
    store_kv,
    attention,
    attention_merge,
};

}  // namespace NL_VARIANT
}  // namespace nl
