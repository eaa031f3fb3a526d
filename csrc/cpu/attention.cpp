// Packing, products and exponentials for attention on the CPU: plain loops that compilers vectorise.

#include "attention.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "clones.h"
#include "vectors.h"

namespace fastguide {

namespace {

using Four = Vectors<4>::Float;

// out = the four of {a0 ... a3, b0 ... b3} that INDEX names.
template <int... INDEX>
FASTGUIDE_INLINE void shuffle(Four& out, const Four& a, const Four& b) {
#if defined(__clang__)
  out = __builtin_shufflevector(a, b, INDEX...);
#else
  typedef int32_t Index __attribute__((vector_size(16)));
  out = __builtin_shuffle(a, b, Index{INDEX...});
#endif
}

// to[j][i] = from[i][j] for 4 x 4 numbers; their rows are `to_row` and `from_row` apart.
FASTGUIDE_INLINE void transpose_four(float* to, int64_t to_row, const float* from,
                                     int64_t from_row) {
  Four a, b, c, d, ab, cd, ab_last, cd_last;
  read(a, from), read(b, from + from_row);
  read(c, from + 2 * from_row), read(d, from + 3 * from_row);
  shuffle<0, 4, 1, 5>(ab, a, b), shuffle<0, 4, 1, 5>(cd, c, d);
  shuffle<2, 6, 3, 7>(ab_last, a, b), shuffle<2, 6, 3, 7>(cd_last, c, d);
  shuffle<0, 1, 4, 5>(a, ab, cd), shuffle<2, 3, 6, 7>(b, ab, cd);
  shuffle<0, 1, 4, 5>(c, ab_last, cd_last), shuffle<2, 3, 6, 7>(d, ab_last, cd_last);
  write(to, a), write(to + to_row, b);
  write(to + 2 * to_row, c), write(to + 3 * to_row, d);
}

}  // namespace

void pack_keys(float* panels, const Heads& k, int64_t r, int64_t h, int64_t keys, int64_t dim,
               Type type) {
  std::vector<float> rows(kLane * dim);
  for (int64_t start = 0; start < round_up(keys, kPanel); start += kLane) {
    const bool in_place = type == Type::kFloat && start + kLane <= keys;
    const float* from = rows.data();
    if (in_place) from = static_cast<const float*>(k.data) + k.at(r, h, start);
    const int64_t stride = in_place ? k.token : dim;
    for (int64_t i = 0; i < (in_place ? 0 : kLane); ++i) {
      float* row = rows.data() + i * dim;
      if (start + i < keys) {
        load_run(row, k.data, k.at(r, h, start + i), dim, type);
      } else {
        std::fill_n(row, dim, 0.0f);
      }
    }
    float* to = panels + start / kPanel * (kPanel * dim) + start % kPanel;
    const int64_t whole = dim / 4 * 4;
    for (int64_t i = 0; i < kLane; i += 4) {
      for (int64_t d = 0; d < whole; d += 4) {
        transpose_four(to + d * kPanel + i, kPanel, from + i * stride + d, stride);
      }
    }
    for (int64_t d = whole; d < dim; ++d) {
      for (int64_t i = 0; i < kLane; ++i) to[d * kPanel + i] = from[i * stride + d];
    }
  }
}

void pack_values(float* panels, const Heads& v, int64_t r, int64_t h, int64_t keys, int64_t dim,
                 Type type) {
  for (int64_t start = 0; start < dim; start += kPanel) {
    const int64_t count = std::min(kPanel, dim - start);
    for (int64_t key = 0; key < keys; ++key) {
      float* to = panels + start * keys + key * kPanel;
      load_run(to, v.data, v.at(r, h, key) + start, count, type);
      std::fill_n(to + count, kPanel - count, 0.0f);
    }
  }
}

namespace {

// Unrolled, `sums` is a set of registers; 85 % of a Zen 5 core's peak in fp32 with AVX-512.
template <int64_t COLUMNS, bool TRANSPOSED>
inline __attribute__((always_inline)) void tile(float* __restrict c, int64_t c_stride,
                                                const float* __restrict a, int64_t a_stride,
                                                const float* __restrict panel, int64_t depth) {
  float sums[kGroup][COLUMNS];
  for (int64_t i = 0; i < kGroup; ++i) {
    for (int64_t j = 0; j < COLUMNS; ++j) sums[i][j] = c[i * c_stride + j];
  }
  for (int64_t d = 0; d < depth; ++d) {
    for (int64_t i = 0; i < kGroup; ++i) {
      const float factor = TRANSPOSED ? a[d * a_stride + i] : a[i * a_stride + d];
      if constexpr (COLUMNS == kLane) {  // a loop of 16 would be unrolled before it is vectorised
#pragma GCC unroll 1
        for (int64_t j = 0; j < COLUMNS; ++j) sums[i][j] += factor * panel[d * kPanel + j];
      } else {
        for (int64_t j = 0; j < COLUMNS; ++j) sums[i][j] += factor * panel[d * kPanel + j];
      }
    }
  }
  for (int64_t i = 0; i < kGroup; ++i) {
    for (int64_t j = 0; j < COLUMNS; ++j) c[i * c_stride + j] = sums[i][j];
  }
}

bool has_32_registers() {
#if defined(__x86_64__)
  static const bool found = __builtin_cpu_supports("avx512f");
  return found;
#else
  return true;
#endif
}

template <bool TRANSPOSED>
inline __attribute__((always_inline)) void tiles(float* c, int64_t c_stride, const float* a,
                                                 int64_t a_stride, const float* panel, int64_t rows,
                                                 int64_t depth, int64_t columns, bool wide) {
  for (int64_t i = 0; i < rows; i += kGroup) {
    float* to = c + i * c_stride;
    const float* from = a + (TRANSPOSED ? i : i * a_stride);
    if (!wide) {  // 16 registers do not hold more
      for (int64_t j = 0; j < columns; j += kLane) {
        tile<kLane, TRANSPOSED>(to + j, c_stride, from, a_stride, panel + j, depth);
      }
    } else if (columns > 3 * kLane) {
      tile<4 * kLane, TRANSPOSED>(to, c_stride, from, a_stride, panel, depth);
    } else if (columns > 2 * kLane) {
      tile<3 * kLane, TRANSPOSED>(to, c_stride, from, a_stride, panel, depth);
    } else if (columns > kLane) {
      tile<2 * kLane, TRANSPOSED>(to, c_stride, from, a_stride, panel, depth);
    } else {
      tile<kLane, TRANSPOSED>(to, c_stride, from, a_stride, panel, depth);
    }
  }
}

FASTGUIDE_CLONES void multiply_panel(float* c, int64_t c_stride, const float* a, int64_t a_stride,
                                     const float* panel, int64_t rows, int64_t depth,
                                     int64_t columns, bool wide) {
  tiles<false>(c, c_stride, a, a_stride, panel, rows, depth, columns, wide);
}

FASTGUIDE_CLONES void multiply_panel_transposed(float* c, int64_t c_stride, const float* a,
                                                int64_t a_stride, const float* panel, int64_t rows,
                                                int64_t depth, int64_t columns, bool wide) {
  tiles<true>(c, c_stride, a, a_stride, panel, rows, depth, columns, wide);
}

// 2^x for x <= 0: 2^rint(x) by the exponent's bits, the rest by a polynomial (error below 8e-8).
// Exactly 1 at 0 and 0 below -126.5; NaN stays NaN.
inline __attribute__((always_inline)) float exp2_of(float x) {
  const float t = x < -127.0f ? -127.0f : x;
  const float shifted = t + (0x1.8p23f + 127.0f);  // its low bits are rint(x) + 127
  const float f = t - (shifted - (0x1.8p23f + 127.0f));
  float p = 1.53533618e-4f;
  p = p * f + 1.33988744e-3f;
  p = p * f + 9.61843736e-3f;
  p = p * f + 5.55033247e-2f;
  p = p * f + 2.40226479e-1f;
  p = p * f + 6.93147203e-1f;
  p = p * f + 1.0f;
  return p * as_float(as_bits(shifted) << 23);
}

}  // namespace

void multiply_add(float* c, int64_t c_stride, const float* a, int64_t a_stride, const float* panels,
                  int64_t panel_stride, int64_t rows, int64_t depth, int64_t columns) {
  const bool wide = has_32_registers();
  for (int64_t start = 0; start < columns; start += kPanel, panels += panel_stride) {
    multiply_panel(c + start, c_stride, a, a_stride, panels, rows, depth,
                   std::min(kPanel, columns - start), wide);
  }
}

void multiply_add_transposed(float* c, int64_t c_stride, const float* a, int64_t a_stride,
                             const float* panels, int64_t panel_stride, int64_t rows, int64_t depth,
                             int64_t columns) {
  const bool wide = has_32_registers();
  for (int64_t start = 0; start < columns; start += kPanel, panels += panel_stride) {
    multiply_panel_transposed(c + start, c_stride, a, a_stride, panels, rows, depth,
                              std::min(kPanel, columns - start), wide);
  }
}

FASTGUIDE_CLONES float largest(const float* __restrict x, int64_t count) {
  float best[kPanel];
  std::fill_n(best, kPanel, -std::numeric_limits<float>::infinity());
  int64_t i = 0;
  for (; i + kPanel <= count; i += kPanel) {
    for (int64_t j = 0; j < kPanel; ++j) best[j] = best[j] > x[i + j] ? best[j] : x[i + j];
  }
  for (int64_t j = 0; i + j < count; ++j) best[j] = best[j] > x[i + j] ? best[j] : x[i + j];
  for (int64_t width = kPanel / 2; width > 0; width /= 2) {
    for (int64_t j = 0; j < width; ++j) best[j] = best[j] > best[j + width] ? best[j] : best[j + width];
  }
  return best[0];
}

FASTGUIDE_CLONES float exponentials(float* __restrict x, float max, int64_t count) {
  float sums[kLane] = {};
  for (int64_t i = 0; i < count; i += kLane) {
    for (int64_t j = 0; j < kLane; ++j) {
      const float value = exp2_of(x[i + j] - max);
      x[i + j] = value;
      sums[j] += value;
    }
  }
  for (int64_t width = kLane / 2; width > 0; width /= 2) {
    for (int64_t j = 0; j < width; ++j) sums[j] += sums[j + width];
  }
  return sums[0];
}

FASTGUIDE_CLONES void exponential_slopes(float* __restrict p, float* __restrict slope,
                                         int64_t count) {
  for (int64_t i = 0; i < count; i += kLane) {
    for (int64_t j = 0; j < kLane; ++j) {
      const float value = exp2_of(p[i + j]);
      p[i + j] = value;
      slope[i + j] *= value;
    }
  }
}

}  // namespace fastguide
