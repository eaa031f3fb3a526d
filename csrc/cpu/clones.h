// FASTGUIDE_CLONES compiles a function once per x86-64 level and picks one when the module is loaded,
// so that one wheel runs anywhere and uses AVX-512 where it is. Where the levels differ in more than
// their instructions, a function is written once per FASTGUIDE_LEVEL(name), and once for "default".
// Not under the address sanitizer: the choice is made before it has started.
#pragma once

#if defined(__SANITIZE_ADDRESS__)
#elif defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define FASTGUIDE_V4 "arch=x86-64-v4"
#define FASTGUIDE_V3 "arch=x86-64-v3"
#elif defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define FASTGUIDE_V4 "avx512f"
#define FASTGUIDE_V3 "avx2"
#endif

#if defined(FASTGUIDE_V4)
#define FASTGUIDE_CLONES __attribute__((target_clones(FASTGUIDE_V4, FASTGUIDE_V3, "default")))
#define FASTGUIDE_LEVEL(name) __attribute__((target(name)))
#else
#define FASTGUIDE_CLONES
#endif
