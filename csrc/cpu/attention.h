// What the attention kernels share on the CPU: packed keys and values, products, exponentials.
//
// Keys and values of one head are packed as panels of kPanel columns that stay in the L1 cache while
// a block of queries passes by; all of it in fp32.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "dtype.h"

namespace fastguide {

constexpr int64_t kPanel = 64;  // columns: four AVX-512 vectors
constexpr int64_t kLane = 16;   // row lengths of blocks are multiples of one vector
constexpr int64_t kGroup = 6;   // rows: 6 x 4 accumulators, two operands: 29 of 32 registers

constexpr int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// `[R, heads, tokens, D]` with any strides but the last, which is 1.
struct Heads {
  const void* data;
  int64_t row, head, token, first = 0;

  explicit Heads(const at::Tensor& t)
      : data(t.const_data_ptr()), row(t.stride(0)), head(t.stride(1)), token(t.stride(2)) {}

  int64_t at(int64_t r, int64_t h, int64_t n) const { return r * row + h * head + (first + n) * token; }

  // The same without the tokens before `n`.
  Heads from(int64_t n) const {
    Heads rest = *this;
    rest.first += n;
    return rest;
  }
};

// panels[column / kPanel][d][column % kPanel] = key `column`, dimension d; zero past the last key.
void pack_keys(float* panels, const Heads& k, int64_t r, int64_t h, int64_t keys, int64_t dim,
               Type type);

// panels[column / kPanel][key][column % kPanel] = value `key`, dimension `column`; zero past the last.
void pack_values(float* panels, const Heads& v, int64_t r, int64_t h, int64_t keys, int64_t dim,
                 Type type);

// c[rows, columns] += a[rows, depth] panels; `rows` is a multiple of kGroup, and the rows of c have
// room for `columns` rounded up to kLane.
void multiply_add(float* c, int64_t c_stride, const float* a, int64_t a_stride, const float* panels,
                  int64_t panel_stride, int64_t rows, int64_t depth, int64_t columns);

// c[rows, columns] += a[depth, rows]^T panels, likewise; the rows of a have room for kGroup more.
void multiply_add_transposed(float* c, int64_t c_stride, const float* a, int64_t a_stride,
                             const float* panels, int64_t panel_stride, int64_t rows, int64_t depth,
                             int64_t columns);

// The largest of x[0 ... count), `count` a multiple of kLane.
float largest(const float* x, int64_t count);

// x = 2^(x - max) for x <= max, and the sum; 0 for x - max below -126.5; `count` a multiple of kLane.
float exponentials(float* x, float max, int64_t count);

// p = 2^p for p <= 0, as above, and slope = p slope.
void exponential_slopes(float* p, float* slope, int64_t count);

}  // namespace fastguide
