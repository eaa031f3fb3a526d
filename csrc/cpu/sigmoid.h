// The logistic function of a vector, for SiLU and its gradient.
#pragma once

#include "vectors.h"

namespace fastguide {

// out = 1 / (1 + e^-x), to 2e-7 of itself for x >= -87 and below 2e-38 for less. NaN times out is NaN.
template <int64_t WIDTH>
FASTGUIDE_INLINE void sigmoid(typename Vectors<WIDTH>::Float& out,
                              const typename Vectors<WIDTH>::Float& x) {
  using Float = typename Vectors<WIDTH>::Float;
  using Bits = typename Vectors<WIDTH>::Bits;
  const Float low = Float{} - 87.0f, high = Float{} + 87.0f;
  Float t = -x;
  t = t > high ? high : t;
  t = t < low ? low : t;
  // e^t = 2^n e^r: n = rint(t / ln 2) is the low bits of `shifted`, and ln 2 has two parts
  const Float shifted = t * 1.44269504f + 0x1.8p23f;
  const Float n = shifted - 0x1.8p23f;
  const Float r = (t - n * 0x1.62e4p-1f) - n * 0x1.7f7d1cp-20f;
  Float p = r * 1.38145986e-3f + 8.36871688e-3f;  // error below 4e-9
  p = p * r + 4.16683880e-2f;
  p = p * r + 1.66665206e-1f;
  p = p * r + 4.99999934e-1f;
  p = p * (r * r) + r + 1.0f;
  Bits bits, power;
  std::memcpy(&bits, &shifted, sizeof bits);
  std::memcpy(&power, &p, sizeof power);
  power += bits << 23;
  std::memcpy(&p, &power, sizeof p);
  out = 1.0f / (1.0f + p);
}

}  // namespace fastguide
