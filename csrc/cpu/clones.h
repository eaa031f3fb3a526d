// FASTGUIDE_CLONES compiles a function once per x86-64 level and picks one when the module is loaded,
// so that one wheel runs anywhere and uses AVX-512 where it is.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define FASTGUIDE_CLONES \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#elif defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define FASTGUIDE_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FASTGUIDE_CLONES
#endif
