// From here to the end of the file, compile for these processor features. The library is built for the plain
// architecture, and what a variant needs beyond that stays inside its file: nothing of it may run before the
// processor was asked (library.cpp).
#pragma once
#define NL_PRAGMA(x) _Pragma(#x)
#if defined(__clang__)
#define NL_TARGET(features) \
    NL_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define NL_TARGET_END NL_PRAGMA(clang attribute pop)
#else
#define NL_TARGET(features) NL_PRAGMA(GCC push_options) NL_PRAGMA(GCC target(features))
#define NL_TARGET_END NL_PRAGMA(GCC pop_options)
#endif
