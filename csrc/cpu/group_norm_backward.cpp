// group_norm_backward: the gradients of tokens, gamma and beta, in closed form.
//
// With n = (x - mean) inverse and z = gamma n + beta, of which silu's slope is s: d = s outward,
//   of_beta = sum d, of_gamma = sum d n, both over tokens, and over the elements of a group
//   of_x = inverse (gamma d - mean(gamma d) - n mean(gamma d n)).
// Reads x twice and outward once; d is written to memory that the result has in fp32, and read from
// there, which takes less time than another exponential. A block stays in the L2 cache up to some
// 1,000 tokens.

#include <tuple>

#include "group_norm.h"
#include "ops.h"
#include "sigmoid.h"

namespace fastguide {
namespace {

struct Arguments {
  const void *outward, *tokens;
  void* of_tokens;
  Type type;
  int64_t count, channels, groups;
  const float *mean, *inverse, *gamma, *beta;
  int64_t gamma_row, beta_row;
  float *of_gamma, *of_beta;
  bool silu;
};

// A channel's numbers, a chunk of tokens, and all of d where the result is no fp32.
struct Scratch {
  Aligned<float> mean, inverse, gamma, beta, sum, product, constant, along, x, outward, d;
  Aligned<double> sums, products;

  Scratch(int64_t n, int64_t tokens)
      : mean(n), inverse(n), gamma(n), beta(n), sum(n), product(n), constant(n), along(n),
        x(kTokens * n), outward(kTokens * n), d(tokens * n), sums(n), products(n) {}
};

// A channel's numbers at the start, zero past the last one.
inline void start_block(Scratch& s, const Arguments& a, const Block& b) {
  const int64_t group = a.channels / a.groups;
  const float* gamma = a.gamma + b.row * a.gamma_row + b.first;
  const float* beta = a.beta + b.row * a.beta_row + b.first;
  for (int64_t c = 0; c < b.padded; ++c) {
    const bool inside = c < b.width;
    const int64_t at = b.row * a.groups + (b.first + c) / group;
    s.mean.data()[c] = inside ? a.mean[at] : 0.0f;
    s.inverse.data()[c] = inside ? a.inverse[at] : 0.0f;
    s.gamma.data()[c] = inside ? gamma[c] : 0.0f;
    s.beta.data()[c] = inside ? beta[c] : 0.0f;
    s.sums.data()[c] = s.products.data()[c] = 0.0;
  }
}

// Of N vectors of channels from `j` on: d, and the sums of d and of d n over a chunk.
template <int64_t WIDTH, int64_t N>
FASTGUIDE_INLINE void slopes(const Chunk<float>& d, Scratch& s, const Chunk<const float>& outward,
                             const Chunk<const float>& x, int64_t count, bool silu, int64_t j) {
  using Float = typename Vectors<WIDTH>::Float;
  Float mean[N], inverse[N], gamma[N], beta[N], sum[N] = {}, product[N] = {};
#pragma GCC unroll 8
  for (int64_t v = 0; v < N; ++v) {
    const int64_t c = j + v * WIDTH;
    read(mean[v], s.mean.data() + c), read(inverse[v], s.inverse.data() + c);
    read(gamma[v], s.gamma.data() + c), read(beta[v], s.beta.data() + c);
  }
  for (int64_t t = 0; t < count; ++t) {
#pragma GCC unroll 8
    for (int64_t v = 0; v < N; ++v) {
      const int64_t c = j + v * WIDTH;
      Float value, slope;
      read(value, x.data + t * x.stride + c);
      read(slope, outward.data + t * outward.stride + c);
      value = (value - mean[v]) * inverse[v];
      if (silu) {
        const Float z = gamma[v] * value + beta[v];
        Float share;
        sigmoid<WIDTH>(share, z);
        slope *= share + share * (z - z * share);
      }
      write(d.data + t * d.stride + c, slope);
      sum[v] += slope;
      product[v] += slope * value;
    }
  }
#pragma GCC unroll 8
  for (int64_t v = 0; v < N; ++v) {
    write(s.sum.data() + j + v * WIDTH, sum[v]);
    write(s.product.data() + j + v * WIDTH, product[v]);
  }
}

template <int64_t WIDTH>
FASTGUIDE_INLINE void add_chunk(const Chunk<float>& d, Scratch& s, const Block& b,
                                const Chunk<const float>& outward, const Chunk<const float>& x,
                                int64_t count, bool silu) {
  int64_t j = 0;
  for (; j + 2 * WIDTH <= b.padded; j += 2 * WIDTH) {
    slopes<WIDTH, 2>(d, s, outward, x, count, silu, j);
  }
  for (; j < b.padded; j += WIDTH) slopes<WIDTH, 1>(d, s, outward, x, count, silu, j);
  double* __restrict sums = s.sums.data();
  double* __restrict products = s.products.data();
  const float* __restrict sum = s.sum.data();
  const float* __restrict product = s.product.data();
  for (int64_t c = 0; c < b.padded; ++c) sums[c] += sum[c], products[c] += product[c];
}

// The gradients of gamma and beta, and of tokens gain d + along (x - mean) + constant.
inline void finish(Scratch& s, const Arguments& a, const Block& b) {
  const int64_t group = a.channels / a.groups, at = b.row * a.channels + b.first;
  const double size = static_cast<double>(a.count * group);
  for (int64_t start = 0; start < b.width; start += group) {
    double sum = 0.0, product = 0.0;
    for (int64_t c = start; c < start + group; ++c) {
      sum += s.gamma.data()[c] * s.sums.data()[c];
      product += s.gamma.data()[c] * s.products.data()[c];
      a.of_beta[at + c] = static_cast<float>(s.sums.data()[c]);
      a.of_gamma[at + c] = static_cast<float>(s.products.data()[c]);
    }
    const double inverse = s.inverse.data()[start];
    for (int64_t c = start; c < start + group; ++c) {
      s.constant.data()[c] = static_cast<float>(-inverse * sum / size);
      s.along.data()[c] = static_cast<float>(-inverse * inverse * product / size);
      s.gamma.data()[c] *= s.inverse.data()[c];
    }
  }
}

template <int64_t WIDTH>
FASTGUIDE_INLINE void combine(const Chunk<float>& out, Scratch& s, const Block& b,
                              const Chunk<float>& d, const Chunk<const float>& x, int64_t count) {
  for (int64_t t = 0; t < count; ++t) {
    for (int64_t j = 0; j < b.padded; j += WIDTH) {
      typename Vectors<WIDTH>::Float value, slope, mean, gain, along, constant;
      read(value, x.data + t * x.stride + j);
      read(slope, d.data + t * d.stride + j);
      read(mean, s.mean.data() + j);
      read(gain, s.gamma.data() + j);
      read(along, s.along.data() + j);
      read(constant, s.constant.data() + j);
      value = gain * slope + (along * (value - mean) + constant);
      write(out.data + t * out.stride + j, value);
    }
  }
}

template <int64_t WIDTH>
FASTGUIDE_INLINE void block_of(const Arguments& a, Scratch& s, const Block& b) {
  const int64_t start = b.row * a.count * a.channels + b.first;
  start_block(s, a, b);
  for (int64_t t = 0; t < a.count; t += kTokens) {
    const int64_t count = std::min(kTokens, a.count - t), at = start + t * a.channels;
    const auto x = load(s.x.data(), a.tokens, a.type, at, a.channels, b, count);
    const auto outward = load(s.outward.data(), a.outward, a.type, at, a.channels, b, count);
    float* rest = s.d.data() + t * b.padded;
    const auto d = target(rest, a.of_tokens, a.type, at, a.channels, b);
    add_chunk<WIDTH>(d, s, b, outward, x, count, a.silu);
  }
  finish(s, a, b);
  for (int64_t t = 0; t < a.count; t += kTokens) {
    const int64_t count = std::min(kTokens, a.count - t), at = start + t * a.channels;
    const auto x = load(s.x.data(), a.tokens, a.type, at, a.channels, b, count);
    float* rest = s.d.data() + t * b.padded;
    const auto d = target(rest, a.of_tokens, a.type, at, a.channels, b);
    combine<WIDTH>(d, s, b, d, x, count);
    store(d, a.of_tokens, a.type, at, a.channels, b, count);
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

std::tuple<at::Tensor, at::Tensor, at::Tensor> group_norm_backward(
    const at::Tensor& outward, const at::Tensor& tokens, const at::Tensor& mean,
    const at::Tensor& inverse, const at::Tensor& gamma, const at::Tensor& beta, bool silu) {
  check_group_norm_backward(outward, tokens, mean, inverse, gamma, beta);
  const at::Tensor of_tokens = tokens.new_empty(tokens.sizes());
  const at::Tensor of_gamma = gamma.new_empty({tokens.size(0), tokens.size(2)});
  const at::Tensor of_beta = of_gamma.new_empty(of_gamma.sizes());
  if (tokens.numel() == 0) return {of_tokens, of_gamma, of_beta};
  const Arguments a{outward.const_data_ptr(),
                    tokens.const_data_ptr(),
                    of_tokens.mutable_data_ptr(),
                    type_of(tokens, "group_norm"),
                    tokens.size(1),
                    tokens.size(2),
                    mean.size(1),
                    mean.const_data_ptr<float>(),
                    inverse.const_data_ptr<float>(),
                    gamma.const_data_ptr<float>(),
                    beta.const_data_ptr<float>(),
                    gamma.stride(0),
                    beta.stride(0),
                    of_gamma.mutable_data_ptr<float>(),
                    of_beta.mutable_data_ptr<float>(),
                    silu};
  const Blocks blocks(tokens, a.groups, kWidthBackward);
  const bool in_place = a.type == Type::kFloat && a.channels % kLanes == 0;
  at::parallel_for(0, blocks.size(), 1, [&](int64_t begin, int64_t end) {
    Scratch scratch(blocks.lanes(), in_place ? 0 : a.count);
    for (int64_t i = begin; i < end; ++i) compute(a, scratch, blocks[i]);
  });
  return {of_tokens, of_gamma, of_beta};
}

}  // namespace fastguide
