// What threads of a warp do together, and 16-bit numbers in pairs. tests/emulated says the same for a
// CPU, thread by thread.
//
// Fragments of mma.m16n8k16 (PTX ISA, "Matrix Fragments for mma.m16n8k16"): lane = 4 g + t holds, of
//   a [16, 16]: a[0] (g, 2t), a[1] (g + 8, 2t), a[2] (g, 2t + 8), a[3] (g + 8, 2t + 8), in pairs;
//   b [16, 8]:  b[0] (2t, g), b[1] (2t + 8, g), in pairs along the first axis;
//   c [16, 8]:  c[0], c[1] (g, 2t), (g, 2t + 1); c[2], c[3] the same of row g + 8.
#pragma once

#include <cstdint>

namespace fastguide {

struct BFloat16 {};
struct Half {};

struct Pair {
  float low, high;
};

template <class T>
__device__ __forceinline__ Pair unpack(uint32_t bits);

template <>
__device__ __forceinline__ Pair unpack<BFloat16>(uint32_t bits) {
  return {__uint_as_float(bits << 16), __uint_as_float(bits & 0xFFFF0000u)};
}

template <>
__device__ __forceinline__ Pair unpack<Half>(uint32_t bits) {
  Pair pair;
  asm("{ .reg .b16 low, high; mov.b32 {low, high}, %2; cvt.f32.f16 %0, low; cvt.f32.f16 %1, high; }"
      : "=f"(pair.low), "=f"(pair.high)
      : "r"(bits));
  return pair;
}

// Sum and largest over the four lanes that share g.
__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(0xFFFFFFFFu, x, 1);
  return x + __shfl_xor_sync(0xFFFFFFFFu, x, 2);
}

__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xFFFFFFFFu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xFFFFFFFFu, x, 2));
}

// The rest needs compute capability 8.0; for an older GPU it compiles to nothing and is not launched.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
#define FASTGUIDE_ASM(...) asm volatile(__VA_ARGS__)
#else
#define FASTGUIDE_ASM(...)
#endif

// Two numbers rounded to nearest, `low` in the low half.
template <class T>
__device__ __forceinline__ uint32_t pack(float low, float high);

template <>
__device__ __forceinline__ uint32_t pack<BFloat16>(float low, float high) {
  uint32_t bits = 0;
  FASTGUIDE_ASM("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
}

template <>
__device__ __forceinline__ uint32_t pack<Half>(float low, float high) {
  uint32_t bits = 0;
  FASTGUIDE_ASM("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
}

// Four 8 x 8 matrices; lane 8 m + i gives the address of row i of matrix m, in shared memory, 16-byte
// aligned. Lane 4 g + t gets elements 2t, 2t + 1 of row g of each; transposed, of column g.
template <bool TRANSPOSED>
__device__ __forceinline__ void load_matrices(uint32_t (&out)[4], const uint16_t* row) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  if constexpr (TRANSPOSED) {
    FASTGUIDE_ASM("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                  : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                  : "r"(address)
                  : "memory");
  } else {
    FASTGUIDE_ASM("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                  : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                  : "r"(address)
                  : "memory");
  }
}

// c += a b.
template <class T>
__device__ __forceinline__ void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                             uint32_t b1);

template <>
__device__ __forceinline__ void multiply_add<BFloat16>(float (&c)[4], const uint32_t (&a)[4],
                                                       uint32_t b0, uint32_t b1) {
  FASTGUIDE_ASM(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <>
__device__ __forceinline__ void multiply_add<Half>(float (&c)[4], const uint32_t (&a)[4],
                                                   uint32_t b0, uint32_t b1) {
  FASTGUIDE_ASM(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace fastguide
