// blur: a Gaussian along both axes of a grid of tokens or pixels, reflect padding.
//
// Along an axis it is a product with a banded matrix. A loop over the taps has nothing to win: 7 taps
// take 1.1 times as long as a single one, which is bound by memory. Where channels lie together, a
// run of kLanes channels of a whole row stays in the L2 cache between the axes: each element is read
// once and written once. Where pixels do, the first axis is written to memory and read again.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <vector>

#include "../checks.h"
#include "blur_axis.h"
#include "clones.h"
#include "dtype.h"
#include "ops.h"

namespace fastguide {
namespace {

constexpr int64_t kRows = 8, kLanes = 32;  // a block of outputs
constexpr int64_t kGrain = 16384;          // elements worth a thread

int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

int64_t grain(int64_t elements) { return std::max<int64_t>(1, kGrain / elements); }

// out[m] = sum_j a[m * a_row + j * a_step] b[j], m < kRows, j < count; out[m] and b[j] are runs of
// kLanes, `out_step` and `b_step` apart.
struct Product {
  float* out;
  int64_t out_step;
  const float* a;
  int64_t a_row, a_step;
  const float* b;
  int64_t b_step, count;
};

// In blocks of ROWS x 2 vectors of WIDTH floats.
template <int64_t WIDTH, int64_t ROWS>
__attribute__((always_inline)) inline void multiply_blocks(const Product p) {
  typedef float Vector __attribute__((vector_size(WIDTH * sizeof(float)), aligned(4), may_alias));
  for (int64_t lane = 0; lane < kLanes; lane += 2 * WIDTH) {
    for (int64_t row = 0; row < kRows; row += ROWS) {
      Vector sum[ROWS][2] = {};
      for (int64_t j = 0; j < p.count; ++j) {
        const float* b = p.b + j * p.b_step + lane;
        const Vector left = *reinterpret_cast<const Vector*>(b);
        const Vector right = *reinterpret_cast<const Vector*>(b + WIDTH);
#pragma GCC unroll 8
        for (int64_t m = 0; m < ROWS; ++m) {
          const float factor = p.a[(row + m) * p.a_row + j * p.a_step];
          sum[m][0] += factor * left;
          sum[m][1] += factor * right;
        }
      }
#pragma GCC unroll 8
      for (int64_t m = 0; m < ROWS; ++m) {
        float* out = p.out + (row + m) * p.out_step + lane;
        *reinterpret_cast<Vector*>(out) = sum[m][0];
        *reinterpret_cast<Vector*>(out + WIDTH) = sum[m][1];
      }
    }
  }
}

// A vector wider than the registers would be taken apart into scalars, so each level has its own:
// 16 of 32 registers for the sums, or 8 of 16.
#if defined(FASTGUIDE_LEVEL)
FASTGUIDE_LEVEL(FASTGUIDE_V4) void multiply(const Product& p) { multiply_blocks<16, 8>(p); }
FASTGUIDE_LEVEL(FASTGUIDE_V3) void multiply(const Product& p) { multiply_blocks<8, 4>(p); }
FASTGUIDE_LEVEL("default")
#endif
void multiply(const Product& p) { multiply_blocks<4, 4>(p); }

// Blur [length, kLanes]; the rows of `out` are written up to the next multiple of kRows.
void blur_run(float* out, int64_t out_step, const std::vector<Panel>& axis, const float* in) {
  for (const Panel& panel : axis) {
    multiply({out + panel.start * out_step, out_step, panel.coefficients.data(), 1, kRows,
              in + panel.first * kLanes, kLanes, panel.count});
  }
}

// Elements of `data` in runs of up to kLanes that lie `step` apart; a full run is one straight line.
template <typename Visit>
__attribute__((always_inline)) inline void each(int64_t runs, int64_t step, int64_t count,
                                                Visit visit) {
  if (count == kLanes) {
    for (int64_t j = 0; j < runs; ++j) {
      for (int64_t i = 0; i < kLanes; ++i) visit(j * kLanes + i, j * step + i);
    }
  } else {
    for (int64_t j = 0; j < runs; ++j) {
      for (int64_t i = 0; i < count; ++i) visit(j * kLanes + i, j * step + i);
    }
  }
}

FASTGUIDE_CLONES void load_runs(float* __restrict out, const void* data, int64_t at, int64_t step,
                                int64_t runs, int64_t count, Type type) {
  const float* floats = static_cast<const float*>(data) + at;
  const uint16_t* bits = static_cast<const uint16_t*>(data) + at;
  if (type == Type::kFloat) {
    each(runs, step, count, [=](int64_t to, int64_t from) { out[to] = floats[from]; });
  } else if (type == Type::kBFloat16) {
    each(runs, step, count,
         [=](int64_t to, int64_t from) { out[to] = from_bfloat16(bits[from]); });
  } else {
    each(runs, step, count, [=](int64_t to, int64_t from) { out[to] = from_half(bits[from]); });
  }
}

FASTGUIDE_CLONES void store_runs(void* data, int64_t at, int64_t step, const float* __restrict x,
                                 int64_t runs, int64_t count, Type type) {
  float* __restrict floats = static_cast<float*>(data) + at;
  uint16_t* __restrict bits = static_cast<uint16_t*>(data) + at;
  if (type == Type::kFloat) {
    each(runs, step, count, [=](int64_t from, int64_t to) { floats[to] = x[from]; });
  } else if (type == Type::kBFloat16) {
    each(runs, step, count, [=](int64_t from, int64_t to) { bits[to] = to_bfloat16(x[from]); });
  } else {
    each(runs, step, count, [=](int64_t from, int64_t to) { bits[to] = to_half(x[from]); });
  }
}

struct Arguments {
  void* out;
  const void* x;
  Type type;
  int64_t rows, height, width, channels;
  int64_t out_row, out_token, x_row, x_token;  // strides; of channels where pixels lie together
  std::vector<float> sigmas_down, sigmas_across;  // [rows]
  int64_t kernel_size;

  // the rows that are no product: x itself, its mean or NaN
  bool skips(int64_t row) const {
    const float down = sigmas_down[row], across = sigmas_across[row];
    const bool alike = down == across && (down == 0.0f || std::isinf(down));
    return alike || !(down >= 0.0f && across >= 0.0f);
  }

  // the matrix of each row; rows of one sigma share it
  std::vector<std::vector<Panel>> axes(const std::vector<float>& sigmas, int64_t length,
                                       int64_t panel) const {
    const bool shared = std::equal(sigmas.begin() + 1, sigmas.end(), sigmas.begin());
    std::vector<std::vector<Panel>> made;
    for (int64_t row = 0; row < (shared ? 1 : rows); ++row) {
      made.push_back(skips(row) ? std::vector<Panel>{}
                                : blur_axis(length, sigmas[row], kernel_size, panel));
    }
    return made;
  }
};

// Channels lie together.
void blur_channels(const Arguments& a, const at::Tensor& x) {
  const int64_t runs = (a.channels + kLanes - 1) / kLanes;
  const auto down = a.axes(a.sigmas_down, a.height, kRows);
  const auto across = a.axes(a.sigmas_across, a.width, kRows);
  const int64_t line = round_up(std::max(a.height, a.width), kRows) * kLanes;
  const int64_t column = a.height * kLanes + 16;  // no power of two, which would crowd a cache set
  const int64_t size = 2 * line + round_up(a.width, kRows) * column;
  const at::Tensor scratch = x.new_empty({at::get_num_threads(), size}, at::kFloat);
  float* buffers = scratch.mutable_data_ptr<float>();
  const int64_t area = a.height * a.width;
  at::parallel_for(0, a.rows * runs, grain(area * kLanes), [&](int64_t begin, int64_t end) {
    float* in = buffers + at::get_thread_num() * size;
    float *blurred = in + line, *middle = blurred + line;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i / runs, start = i % runs * kLanes;
      if (a.skips(row)) continue;
      const auto &vertical = down[row % down.size()], &horizontal = across[row % across.size()];
      const int64_t count = std::min(kLanes, a.channels - start);
      const int64_t from = row * a.x_row + start, to = row * a.out_row + start;
      for (int64_t h = 0; h < a.height; ++h) {
        load_runs(in, a.x, from + h * a.width * a.x_token, a.x_token, a.width, count, a.type);
        blur_run(middle + h * kLanes, column, horizontal, in);
      }
      for (int64_t w = 0; w < a.width; ++w) {
        blur_run(blurred, kLanes, vertical, middle + w * column);
        store_runs(a.out, to + w * a.out_token, a.width * a.out_token, blurred, a.height, count,
                   a.type);
      }
    }
  });
}

// Pixels lie together: down the columns to `middle`, along the rows from there.
void blur_pixels(const Arguments& a, const at::Tensor& x) {
  const auto down = a.axes(a.sigmas_down, a.height, kRows);
  const auto across = a.axes(a.sigmas_across, a.width, kLanes);
  const int64_t runs = (a.width + kLanes - 1) / kLanes, lines = (a.height + kRows - 1) / kRows;
  const int64_t planes = a.rows * a.channels, plane = lines * kRows * a.width;
  const at::Tensor scratch = x.new_empty({planes, plane}, at::kFloat);
  float* middle = scratch.mutable_data_ptr<float>();
  const int64_t columns = planes * runs;
  at::parallel_for(0, columns, grain(a.height * kLanes), [&](int64_t begin, int64_t end) {
    const int64_t size = lines * kRows * kLanes;
    std::vector<float> buffer(2 * size);
    float *in = buffer.data(), *blurred = in + size;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i / runs / a.channels, start = i % runs * kLanes;
      if (a.skips(row)) continue;
      const int64_t count = std::min(kLanes, a.width - start);
      const int64_t from = row * a.x_row + i / runs % a.channels * a.x_token + start;
      load_runs(in, a.x, from, a.width, a.height, count, a.type);
      blur_run(blurred, kLanes, down[row % down.size()], in);
      store_runs(middle, i / runs * plane + start, a.width, blurred, a.height, count, Type::kFloat);
    }
  });
  at::parallel_for(0, planes * lines, grain(a.width * kRows), [&](int64_t begin, int64_t end) {
    float blurred[kRows * kLanes];
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i / lines / a.channels, start = i % lines * kRows;
      if (a.skips(row)) continue;
      const int64_t count = std::min(kRows, a.height - start);
      const float* in = middle + i / lines * plane + start * a.width;
      const int64_t to = row * a.out_row + i / lines % a.channels * a.out_token + start * a.width;
      for (const Panel& panel : across[row % across.size()]) {
        // lines past the end hold what was there before, and are not stored
        multiply({blurred, kLanes, in + panel.first, a.width, 1, panel.coefficients.data(), kLanes,
                  panel.count});
        store_runs(a.out, to + panel.start, a.width, blurred, count,
                   std::min(kLanes, a.width - panel.start), a.type);
      }
    }
  });
}

// Rows without a product: x itself, its mean, or NaN.
void fill(at::Tensor out, const at::Tensor& x, float down, float across) {
  if (down == 0.0f && across == 0.0f) {
    out.copy_(x);
  } else if (down > 0.0f && across > 0.0f) {
    out.copy_(x.mean({1}, /*keepdim=*/true, at::kFloat));
  } else {
    out.fill_(std::numeric_limits<float>::quiet_NaN());
  }
}

}  // namespace

at::Tensor blur(const at::Tensor& x, const std::optional<at::Tensor>& sigmas, double down,
                double across, int64_t height, int64_t width, int64_t kernel_size) {
  check_blur(x, sigmas, height, width, kernel_size);
  const bool pixels = x.stride(1) == 1 && x.stride(2) != 1;
  const at::Tensor in = pixels || x.stride(2) == 1 ? x : x.contiguous();
  const at::Tensor out = pixels
                             ? x.new_empty({x.size(0), x.size(2), x.size(1)}).transpose(1, 2)
                             : x.new_empty(x.sizes());
  if (out.numel() == 0) return out;
  Arguments a{};
  a.out = out.mutable_data_ptr(), a.x = in.const_data_ptr(), a.type = type_of(x, "blur");
  a.rows = x.size(0), a.height = height, a.width = width, a.channels = x.size(2);
  a.out_row = out.stride(0), a.x_row = in.stride(0);
  a.out_token = out.stride(pixels ? 2 : 1), a.x_token = in.stride(pixels ? 2 : 1);
  a.kernel_size = kernel_size;
  a.sigmas_down.assign(a.rows, static_cast<float>(down));
  a.sigmas_across.assign(a.rows, static_cast<float>(across));
  if (sigmas) {
    std::copy_n(sigmas->const_data_ptr<float>(), a.rows, a.sigmas_down.begin());
    a.sigmas_across = a.sigmas_down;
  }
  pixels ? blur_pixels(a, x) : blur_channels(a, x);
  if (!sigmas && a.skips(0)) {
    fill(out, in, a.sigmas_down[0], a.sigmas_across[0]);
  } else {
    for (int64_t row = 0; row < a.rows; ++row) {
      if (!a.skips(row)) continue;
      fill(out.narrow(0, row, 1), in.narrow(0, row, 1), a.sigmas_down[row], a.sigmas_across[row]);
    }
  }
  return out;
}

}  // namespace fastguide
