// gram: per sample the inner products and sums of p_0, x0 = a x + b p_0 and the deltas.
//
// Reads x, each branch and the factor once, all of them side by side; 2 flops an element and product.
// Products are summed over kChain vectors in fp32 and beyond in fp64, by chunks of one sample that are
// added in order: the result depends neither on the number of threads nor on the batch.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <vector>

#include "../checks.h"
#include "branch.h"
#include "clones.h"
#include "ops.h"
#include "vectors.h"

namespace fastguide {
namespace {

constexpr int64_t kRun = 512;
constexpr int64_t kChunk = 16 * kRun;
constexpr int64_t kChain = 32;  // additions in fp32: at most 16 roundings of 2^-24 on the average
constexpr int64_t kLanes = 16;
constexpr int64_t kMaxBranches = 8;

// Of n vectors: their products with themselves and each later one, and their sum.
constexpr int64_t entries(int64_t n) { return n * (n + 3) / 2; }

struct Arguments {
  const float* x;
  int64_t numel;
  const Branch* branches;
  int64_t branch_count;
  const float* base;    // a, b
  int64_t base_stride;  // from one sample's to the next: 0 where they share them
  int64_t deltas;       // bit k: branch k is a delta already
  const float* factor;  // or null
  int64_t factored;     // bit k: delta k is multiplied by the factor
};

// Elements that lie one after the other.
struct Stream {
  const void* data;
  Type type;
};

// One stretch of a sample.
struct Streams {
  const float *x, *factor;
  Stream branches[kMaxBranches];
  double of_x, of_prediction;
  int64_t deltas, factored;
};

// Elements of a stream that come so much later are asked for early: there are too many streams for
// the processor to see them all.
template <typename Vector, typename T>
FASTGUIDE_INLINE void read_ahead(Vector& vector, const T* from) {
  __builtin_prefetch(from + kRun);
  read(vector, from);
}

template <int64_t WIDTH>
FASTGUIDE_INLINE void load(typename Vectors<WIDTH>::Float& out, const Stream& stream, int64_t i) {
  using Bits = typename Vectors<WIDTH>::Bits;
  if (stream.type == Type::kFloat) return read_ahead(out, static_cast<const float*>(stream.data) + i);
  typename Vectors<WIDTH>::Half half;
  read_ahead(half, static_cast<const uint16_t*>(stream.data) + i);
  Bits bits = __builtin_convertvector(half, Bits);
  if (stream.type == Type::kBFloat16) {
    bits <<= 16;
  } else {  // from_half of dtype.h
    const Bits magnitude = (bits & 0x7FFFu) << 13, sign = (bits & 0x8000u) << 16;
    std::memcpy(&out, &magnitude, sizeof out);
    out *= 0x1p112f;
    std::memcpy(&bits, &out, sizeof bits);
    bits = (magnitude >= 0x0F800000u ? magnitude | 0x7F800000u : bits) | sign;
  }
  std::memcpy(&out, &bits, sizeof out);
}

// totals[entry][lane] += `count` elements, a multiple of kLanes, of each of N vectors.
template <int64_t WIDTH, int64_t N>
FASTGUIDE_INLINE void add_products(double* totals, const Streams s, int64_t count) {
  using Float = typename Vectors<WIDTH>::Float;
  using Double = typename Vectors<WIDTH>::Double;
  constexpr int64_t kEntries = entries(N);
  for (int64_t start = 0; start < count; start += kChain * WIDTH) {
    const int64_t end = std::min(start + kChain * WIDTH, count);
    Float sums[kEntries] = {};
    for (int64_t i = start; i < end; i += WIDTH) {
      Float v[N], x, factor;
      load<WIDTH>(v[0], s.branches[0], i);
      read_ahead(x, s.x + i);
      // in fp64: what is left of large terms may be small
      const Double image = s.of_x * __builtin_convertvector(x, Double) +
                           s.of_prediction * __builtin_convertvector(v[0], Double);
      v[1] = __builtin_convertvector(image, Float);
#pragma GCC unroll 16
      for (int64_t k = 1; k < N - 1; ++k) {
        load<WIDTH>(v[k + 1], s.branches[k], i);
        if (!(s.deltas >> k & 1)) v[k + 1] = v[0] - v[k + 1];
      }
      if (s.factored) {
        read_ahead(factor, s.factor + i);
#pragma GCC unroll 16
        for (int64_t k = 1; k < N - 1; ++k) {
          if (s.factored >> k & 1) v[k + 1] *= factor;
        }
      }
      int64_t entry = 0;
#pragma GCC unroll 16
      for (int64_t r = 0; r < N; ++r) {
#pragma GCC unroll 16
        for (int64_t c = r; c < N; ++c) sums[entry++] += v[r] * v[c];
        sums[entry++] += v[r];
      }
    }
#pragma GCC unroll 64
    for (int64_t entry = 0; entry < kEntries; ++entry) {
      Double total;
      std::memcpy(&total, totals + entry * kLanes, sizeof total);
      total += __builtin_convertvector(sums[entry], Double);
      std::memcpy(totals + entry * kLanes, &total, sizeof total);
    }
  }
}

template <int64_t WIDTH>
FASTGUIDE_INLINE void add_any(double* totals, const Streams& s, int64_t branches, int64_t count) {
  switch (branches) {
    case 1: return add_products<WIDTH, 2>(totals, s, count);
    case 2: return add_products<WIDTH, 3>(totals, s, count);
    case 3: return add_products<WIDTH, 4>(totals, s, count);
    case 4: return add_products<WIDTH, 5>(totals, s, count);
    case 5: return add_products<WIDTH, 6>(totals, s, count);
    case 6: return add_products<WIDTH, 7>(totals, s, count);
    case 7: return add_products<WIDTH, 8>(totals, s, count);
    case 8: return add_products<WIDTH, 9>(totals, s, count);
  }
}

// A vector wider than the registers would be taken apart into scalars, so each level has its own.
#if defined(FASTGUIDE_LEVEL)
FASTGUIDE_LEVEL(FASTGUIDE_V4)
void add(double* totals, const Streams& s, int64_t branches, int64_t count) {
  add_any<16>(totals, s, branches, count);
}
FASTGUIDE_LEVEL(FASTGUIDE_V3)
void add(double* totals, const Streams& s, int64_t branches, int64_t count) {
  add_any<8>(totals, s, branches, count);
}
FASTGUIDE_LEVEL("default")
#endif
void add(double* totals, const Streams& s, int64_t branches, int64_t count) {
  add_any<4>(totals, s, branches, count);
}

// sums[entries] of elements start ... start + count - 1 of a sample.
void sum_chunk(double* sums, const Arguments& a, int64_t sample, int64_t start, int64_t count) {
  alignas(64) float buffers[kMaxBranches + 2][kRun];
  alignas(64) double totals[entries(kMaxBranches + 1)][kLanes];
  const int64_t n = a.branch_count + 1;
  std::fill_n(totals[0], entries(n) * kLanes, 0.0);
  Streams s{};
  const float* base = a.base + sample * a.base_stride;
  s.of_x = base[0], s.of_prediction = base[1], s.deltas = a.deltas, s.factored = a.factored;
  for (int64_t done = 0; done < count; done += kRun) {
    const int64_t length = std::min(kRun, count - done), first = start + done;
    const int64_t at = sample * a.numel + first;
    const int64_t padded = (length + kLanes - 1) / kLanes * kLanes;
    if (length < padded) std::fill_n(buffers[0], sizeof buffers / sizeof(float), 0.0f);
    for (int64_t k = 0; k < a.branch_count; ++k) {
      const Branch& branch = a.branches[k];
      const void* lies = length == padded ? in_line(branch, sample, first, length) : nullptr;
      s.branches[k] = {lies, branch.type};
      if (lies == nullptr) {
        load(buffers[k], branch, sample, first, length);
        s.branches[k] = {buffers[k], Type::kFloat};
      }
    }
    s.x = a.x + at, s.factor = a.factored ? a.factor + at : nullptr;
    if (length < padded) {
      const auto pad = [length](float* buffer, const float* from) {
        std::copy_n(from, length, buffer);
        return buffer;
      };
      s.x = pad(buffers[kMaxBranches], s.x);
      if (a.factored) s.factor = pad(buffers[kMaxBranches + 1], s.factor);
    }
    add(totals[0], s, a.branch_count, padded);
  }
  for (int64_t entry = 0; entry < entries(n); ++entry) {
    sums[entry] = 0.0;
    for (int64_t lane = 0; lane < kLanes; ++lane) sums[entry] += totals[entry][lane];
  }
}

}  // namespace

at::Tensor gram(const at::Tensor& x, at::TensorList branches, const at::Tensor& base,
                int64_t deltas, const std::optional<at::Tensor>& factor, int64_t factored) {
  check_gram(x, branches, base, factor, factored);
  const int64_t batch = x.size(0), n = static_cast<int64_t>(branches.size()) + 1;
  const at::Tensor out = x.new_zeros({batch, n, n + 1}, at::kDouble);
  if (x.numel() == 0) return out;
  const int64_t numel = x.size(1) * x.size(2), count = entries(n);
  at::SmallVector<Branch, kMaxBranches> views;
  for (const at::Tensor& branch : branches) views.push_back(Branch(branch, "gram"));
  const Arguments a{x.const_data_ptr<float>(),
                    numel,
                    views.data(),
                    n - 1,
                    base.const_data_ptr<float>(),
                    base.dim() == 2 ? base.stride(0) : 0,
                    deltas,
                    factor ? factor->const_data_ptr<float>() : nullptr,
                    factored};
  const int64_t chunks = (numel + kChunk - 1) / kChunk;
  std::vector<double> partial(batch * chunks * count);
  at::parallel_for(0, batch * chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t start = i % chunks * kChunk;
      sum_chunk(partial.data() + i * count, a, i / chunks, start, std::min(kChunk, numel - start));
    }
  });
  double* to = out.mutable_data_ptr<double>();
  for (int64_t sample = 0; sample < batch; ++sample, to += n * (n + 1)) {
    double* sums = partial.data() + sample * chunks * count;
    for (int64_t i = count; i < chunks * count; ++i) sums[i % count] += sums[i];
    for (int64_t r = 0; r < n; ++r) {
      for (int64_t c = r; c <= n; ++c, ++sums) {
        to[r * (n + 1) + c] = *sums;
        if (c < n) to[c * (n + 1) + r] = *sums;
      }
    }
  }
  return out;
}

}  // namespace fastguide
