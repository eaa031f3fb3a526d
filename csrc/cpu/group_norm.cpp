// group_norm: tokens scaled and shifted to mean 0 and variance 1 in groups of channels, then per
// row and channel, then SiLU.
//
// Reads a block of channels twice, the second time from the L2 cache up to some 4,000 tokens, and
// writes it once. Sums are of the differences to a chunk's first token, so that squares cancel by
// less than kTokens; they are added over chunks in fp64.

#include "group_norm.h"

#include <cmath>
#include <tuple>

#include "ops.h"
#include "sigmoid.h"

namespace fastguide {
namespace {

struct Arguments {
  const void* tokens;
  void* out;
  Type type;
  int64_t count, channels, groups;
  const float *gamma, *beta;
  int64_t gamma_row, beta_row;
  float *mean, *inverse;
  float eps;
  bool silu;
};

// A channel's numbers, and a chunk of tokens as they are read and written.
struct Scratch {
  Aligned<float> first, sum, square, mean, gain, shift, in, out;
  Aligned<double> sums, squares;

  explicit Scratch(int64_t n)
      : first(n), sum(n), square(n), mean(n), gain(n), shift(n), in(kTokens * n), out(kTokens * n),
        sums(n), squares(n) {}
};

// Of N vectors of channels from `j` on: the sums of x - x_0 and of its square over a chunk.
template <int64_t WIDTH, int64_t N>
FASTGUIDE_INLINE void differences(Scratch& s, const Chunk<const float>& x, int64_t count, int64_t j) {
  typename Vectors<WIDTH>::Float first[N], sum[N] = {}, square[N] = {}, value;
#pragma GCC unroll 8
  for (int64_t v = 0; v < N; ++v) read(first[v], x.data + j + v * WIDTH);
  for (int64_t t = 1; t < count; ++t) {
#pragma GCC unroll 8
    for (int64_t v = 0; v < N; ++v) {
      read(value, x.data + t * x.stride + j + v * WIDTH);
      value -= first[v];
      sum[v] += value;
      square[v] += value * value;
    }
  }
#pragma GCC unroll 8
  for (int64_t v = 0; v < N; ++v) {
    write(s.sum.data() + j + v * WIDTH, sum[v]);
    write(s.square.data() + j + v * WIDTH, square[v]);
  }
}

// Sums and squares of all differences to the row's first token.
template <int64_t WIDTH>
FASTGUIDE_INLINE void add_chunk(Scratch& s, const Block& b, const Chunk<const float>& x, int64_t count) {
  int64_t j = 0;
  for (; j + 4 * WIDTH <= b.padded; j += 4 * WIDTH) differences<WIDTH, 4>(s, x, count, j);
  for (; j < b.padded; j += WIDTH) differences<WIDTH, 1>(s, x, count, j);
  double* __restrict sums = s.sums.data();
  double* __restrict squares = s.squares.data();
  const float* __restrict sum = s.sum.data();
  const float* __restrict square = s.square.data();
  const float* __restrict first = s.first.data();
  const double n = static_cast<double>(count);
  for (int64_t c = 0; c < b.padded; ++c) {
    const double apart = static_cast<double>(x.data[c]) - first[c];
    sums[c] += n * apart + sum[c];
    squares[c] += square[c] + apart * (n * apart + 2.0 * sum[c]);
  }
}

// mean, gain and shift of each channel; out = gain (x - mean) + shift.
inline void finish(Scratch& s, const Arguments& a, const Block& b) {
  const int64_t group = a.channels / a.groups;
  const double n = static_cast<double>(a.count), size = n * group;
  const float* gamma = a.gamma + b.row * a.gamma_row + b.first;
  const float* beta = a.beta + b.row * a.beta_row + b.first;
  for (int64_t start = 0; start < b.width; start += group) {
    double mean = 0.0, square = 0.0;
    for (int64_t c = start; c < start + group; ++c) mean += s.first.data()[c] + s.sums.data()[c] / n;
    mean /= group;
    for (int64_t c = start; c < start + group; ++c) {
      const double apart = s.first.data()[c] - mean, sum = s.sums.data()[c];
      square += s.squares.data()[c] + apart * (n * apart + 2.0 * sum);
    }
    const double inverse = 1.0 / std::sqrt(std::max(square, 0.0) / size + a.eps);
    const int64_t at = b.row * a.groups + (b.first + start) / group;
    a.mean[at] = static_cast<float>(mean);
    a.inverse[at] = static_cast<float>(inverse);
    for (int64_t c = start; c < start + group; ++c) {
      s.mean.data()[c] = a.mean[at];
      s.gain.data()[c] = gamma[c] * a.inverse[at];
      s.shift.data()[c] = beta[c];
    }
  }
}

template <int64_t WIDTH>
FASTGUIDE_INLINE void normalise(const Chunk<float>& out, Scratch& s, const Block& b,
                                const Chunk<const float>& x, int64_t count, bool silu) {
  const float* __restrict means = s.mean.data();
  const float* __restrict gains = s.gain.data();
  const float* __restrict shifts = s.shift.data();
  for (int64_t t = 0; t < count; ++t) {
    for (int64_t j = 0; j < b.padded; j += WIDTH) {
      typename Vectors<WIDTH>::Float value, mean, gain, shift;
      read(value, x.data + t * x.stride + j);
      read(mean, means + j);
      read(gain, gains + j);
      read(shift, shifts + j);
      value = gain * (value - mean) + shift;
      if (silu) {
        sigmoid<WIDTH>(gain, value);
        value *= gain;
      }
      write(out.data + t * out.stride + j, value);
    }
  }
}

template <int64_t WIDTH>
FASTGUIDE_INLINE void block_of(const Arguments& a, Scratch& s, const Block& b) {
  const int64_t start = b.row * a.count * a.channels + b.first;
  std::fill_n(s.sums.data(), b.padded, 0.0);
  std::fill_n(s.squares.data(), b.padded, 0.0);
  for (int64_t t = 0; t < a.count; t += kTokens) {
    const int64_t count = std::min(kTokens, a.count - t);
    const int64_t at = start + t * a.channels;
    const Chunk<const float> x = load(s.in.data(), a.tokens, a.type, at, a.channels, b, count);
    if (t == 0) std::copy_n(x.data, b.padded, s.first.data());
    add_chunk<WIDTH>(s, b, x, count);
  }
  finish(s, a, b);
  for (int64_t t = 0; t < a.count; t += kTokens) {
    const int64_t count = std::min(kTokens, a.count - t);
    const int64_t at = start + t * a.channels;
    const Chunk<const float> x = load(s.in.data(), a.tokens, a.type, at, a.channels, b, count);
    const Chunk<float> to = target(s.out.data(), a.out, a.type, at, a.channels, b);
    normalise<WIDTH>(to, s, b, x, count, a.silu);
    store(to, a.out, a.type, at, a.channels, b, count);
  }
}

#if defined(FASTGUIDE_LEVEL)
FASTGUIDE_LEVEL(FASTGUIDE_V4)
void compute(const Arguments& a, Scratch& s, const Block& b) { block_of<16>(a, s, b); }
FASTGUIDE_LEVEL(FASTGUIDE_V3)
void compute(const Arguments& a, Scratch& s, const Block& b) { block_of<8>(a, s, b); }
FASTGUIDE_LEVEL("default")
#endif
void compute(const Arguments& a, Scratch& s, const Block& b) { block_of<4>(a, s, b); }

}  // namespace

std::tuple<at::Tensor, at::Tensor, at::Tensor> group_norm(const at::Tensor& tokens,
                                                          const at::Tensor& gamma,
                                                          const at::Tensor& beta, int64_t groups,
                                                          double eps, bool silu) {
  check_group_norm(tokens, gamma, beta, groups);
  const at::Tensor out = tokens.new_empty(tokens.sizes());
  const at::Tensor mean = gamma.new_empty({tokens.size(0), groups});
  const at::Tensor inverse = mean.new_empty(mean.sizes());
  if (tokens.numel() == 0) return {out, mean, inverse};
  const Arguments a{tokens.const_data_ptr(),
                    out.mutable_data_ptr(),
                    type_of(tokens, "group_norm"),
                    tokens.size(1),
                    tokens.size(2),
                    groups,
                    gamma.const_data_ptr<float>(),
                    beta.const_data_ptr<float>(),
                    gamma.stride(0),
                    beta.stride(0),
                    mean.mutable_data_ptr<float>(),
                    inverse.mutable_data_ptr<float>(),
                    static_cast<float>(eps),
                    silu};
  const Blocks blocks(tokens, groups, kWidth);
  at::parallel_for(0, blocks.size(), 1, [&](int64_t begin, int64_t end) {
    Scratch scratch(blocks.lanes());
    for (int64_t i = begin; i < end; ++i) compute(a, scratch, blocks[i]);
  });
  return {out, mean, inverse};
}

}  // namespace fastguide
