// Standard normal noise counted by (seed, evaluation, element): the same numbers on every device.
//
// Philox4x32-10 (Salmon et al. 2011) keyed by the 64-bit seed; the counter is
// (block low, block high, evaluation, 0), block = element / 4. Its four words give four normals by
// Box-Muller. Branch-free, so that compilers vectorise it; the CPU and CUDA kernels share this file,
// kernels/philox.py says the same in Triton and fastguide/reference/noise.py in PyTorch.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "inline.h"

namespace fastguide {

struct Words {
  uint32_t x, y, z, w;
};

struct Normals {
  float x, y, z, w;
};

// The counter is kept in 64-bit lanes, of which only the low halves count: a product is then one
// widening multiplication, and the whole takes half the time of 32-bit lanes with AVX-512.
FASTGUIDE_INLINE Words philox4x32(Words counter, uint32_t key0, uint32_t key1) {
  uint64_t x = counter.x, y = counter.y, z = counter.z, w = counter.w;
#if defined(__CUDACC__)
#pragma unroll
#else
#pragma GCC unroll 10
#endif
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = static_cast<uint64_t>(static_cast<uint32_t>(x)) * 0xD2511F53u;
    const uint64_t product1 = static_cast<uint64_t>(static_cast<uint32_t>(z)) * 0xCD9E8D57u;
    x = (product1 >> 32) ^ y ^ key0;
    z = (product0 >> 32) ^ w ^ key1;
    y = product1;
    w = product0;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return {static_cast<uint32_t>(x), static_cast<uint32_t>(y), static_cast<uint32_t>(z),
          static_cast<uint32_t>(w)};
}

// -2 log(u) for u = (word / 256 + 1/2) 2^-24, which lies in (0, 1): error below 2 ulp.
FASTGUIDE_INLINE float minus_two_log(uint32_t word) {
  const float u = (static_cast<float>(static_cast<int32_t>(word >> 8)) + 0.5f) * 0x1p-24f;
  uint32_t bits;
  std::memcpy(&bits, &u, sizeof bits);
  // u = mantissa 2^exponent with the mantissa in [sqrt(1/2), sqrt(2))
  const uint32_t offset = bits - 0x3F3504F3u;
  const int32_t exponent = static_cast<int32_t>(offset) >> 23;
  bits = (offset & 0x007FFFFFu) + 0x3F3504F3u;
  float mantissa;
  std::memcpy(&mantissa, &bits, sizeof mantissa);
  const float f = mantissa - 1.0f;
  // log(1 + f) = f + f^2 (-1/2 + f R(f)), R fitted at Chebyshev nodes
  float r = 7.1497537e-2f;
  r = r * f - 1.1571201e-1f;
  r = r * f + 1.1661511e-1f;
  r = r * f - 1.2411051e-1f;
  r = r * f + 1.4249937e-1f;
  r = r * f - 1.6668481e-1f;
  r = r * f + 2.0000708e-1f;
  r = r * f - 2.4999990e-1f;
  r = r * f + 3.3333331e-1f;
  const float log1p = f + f * f * (r * f - 0.5f);
  return -2.0f * (log1p + static_cast<float>(exponent) * 0.693147181f);
}

// cos and sin of 2 pi u, u = (word / 256) 2^-24 in [0, 1): absolute error below 1e-7.
FASTGUIDE_INLINE void cos_sin_turn(uint32_t word, float* cosine, float* sine) {
  const int32_t turn = static_cast<int32_t>(word >> 8);
  const int32_t quadrant = (turn + (1 << 21)) >> 22;  // nearest quarter turn, 0 ... 4
  const float r = static_cast<float>(turn - (quadrant << 22)) * 0x1p-24f;  // exact, |r| <= 1/8
  const float z = r * r;
  const float s = r * ((((4.1472893e1f * z - 7.6697868e1f) * z + 8.1605202e1f) * z
                        - 4.1341702e1f) * z + 6.2831855f);
  const float c = (((5.9220287e1f * z - 8.5442848e1f) * z + 6.4939316e1f) * z - 1.9739208e1f) * z
                  + 1.0f;
  const bool odd = quadrant & 1;
  const float even_c = odd ? s : c, even_s = odd ? c : s;
  *cosine = ((quadrant + 1) & 2) ? -even_c : even_c;
  *sine = (quadrant & 2) ? -even_s : even_s;
}

// The random words of elements 4 block ... 4 block + 3.
FASTGUIDE_INLINE Words random_words(uint64_t seed, uint32_t evaluation, uint64_t block) {
  return philox4x32(
      {static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32), evaluation, 0u},
      static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
}

// The four normals that four words give.
FASTGUIDE_INLINE Normals box_muller(Words words) {
  const float radius0 = std::sqrt(minus_two_log(words.x));
  const float radius1 = std::sqrt(minus_two_log(words.z));
  float cos0, sin0, cos1, sin1;
  cos_sin_turn(words.y, &cos0, &sin0);
  cos_sin_turn(words.w, &cos1, &sin1);
  return {radius0 * cos0, radius0 * sin0, radius1 * cos1, radius1 * sin1};
}

}  // namespace fastguide
