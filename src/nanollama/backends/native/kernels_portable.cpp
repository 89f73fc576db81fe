// The variant for every processor: the slow twin that the others are tested against.
#define NL_VARIANT portable
#include "simd_portable.h"
#include "variant.h"
