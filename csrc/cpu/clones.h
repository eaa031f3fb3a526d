// FASTGUIDE_CLONES compiles a function once per x86-64 level and picks one when the module is loaded,
// so that one wheel runs anywhere and uses AVX-512 where it is. Where the levels differ in more than
// their instructions, a function is written once per FASTGUIDE_LEVEL(name), and once for "default".
//
// CFLAGS=-DFASTGUIDE_HIGHEST=3 leaves AVX-512 out, 1 AVX2 too, to try the other levels where they are.
#pragma once

#if !defined(FASTGUIDE_HIGHEST)
#define FASTGUIDE_HIGHEST 4
#endif

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && FASTGUIDE_HIGHEST >= 3
#if __GNUC__ >= 12
#define FASTGUIDE_V3 "arch=x86-64-v3"
#else
#define FASTGUIDE_V3 "avx2"
#endif
#define FASTGUIDE_LEVEL(name) __attribute__((target(name)))
#if FASTGUIDE_HIGHEST >= 4
#if __GNUC__ >= 12
#define FASTGUIDE_V4 "arch=x86-64-v4"
#else
#define FASTGUIDE_V4 "avx512f"
#endif
#define FASTGUIDE_CLONES __attribute__((target_clones(FASTGUIDE_V4, FASTGUIDE_V3, "default")))
#else
#define FASTGUIDE_CLONES __attribute__((target_clones(FASTGUIDE_V3, "default")))
#endif
#else
#define FASTGUIDE_CLONES
#endif
