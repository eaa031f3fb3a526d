// attention_colsum: the mean over heads of the column sums of softmax(q k^T scale).
//
// Scores exist for one block of queries at a time. A task sums a fixed share of one head's queries, and
// the shares are added in a fixed order, so the result does not depend on the number of threads.
// 2 D flops and one exponential for each query, key and head.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "../checks.h"
#include "../online_softmax.h"
#include "attention.h"
#include "clones.h"
#include "ops.h"

namespace fastguide {
namespace {

constexpr int64_t kScores = 1 << 16;   // floats of a block: a quarter of a MiB of cache
constexpr int64_t kMaxBlock = 8 * kGroup;
constexpr int64_t kShares = 4;         // of each head's queries

// sums += the rows of a group, each by its own factor.
FASTGUIDE_CLONES void add_rows(float* __restrict sums, const float* __restrict rows, int64_t stride,
                               const float* __restrict factor, int64_t count) {
  for (int64_t j = 0; j < count; ++j) {
    float sum = sums[j];
    for (int64_t i = 0; i < kGroup; ++i) sum += factor[i] * rows[i * stride + j];
    sums[j] = sum;
  }
}

FASTGUIDE_CLONES void scale(float* __restrict x, float factor, int64_t count) {
  for (int64_t i = 0; i < count; ++i) x[i] *= factor;
}

struct Arguments {
  Heads q, k;
  int64_t queries, keys, dim;
  float scale;
  Type type;
};

// Adds the softmax of queries [begin, end) of one head, whose keys are packed, to sums[keys].
void add_softmax(float* sums, const Arguments& a, int64_t r, int64_t h, const float* panels,
                 int64_t begin, int64_t end) {
  const int64_t width = round_up(a.keys, kLane), stride = width + kLane;  // not a power of 2
  const int64_t block =
      std::clamp(kScores / stride / kGroup * kGroup, kGroup, kMaxBlock);
  std::vector<float> query(block * a.dim), scores(block * stride), sum(width);
  for (int64_t start = begin; start < end; start += block) {
    const int64_t count = std::min(block, end - start), rows = round_up(count, kGroup);
    for (int64_t i = 0; i < count; ++i) {
      load_run(query.data() + i * a.dim, a.q.data, a.q.at(r, h, start + i), a.dim, a.type);
    }
    scale(query.data(), a.scale * kLog2E, count * a.dim);
    for (int64_t i = 0; i < rows; ++i) {
      float* row = scores.data() + i * stride;
      std::fill_n(row, a.keys, 0.0f);
      std::fill_n(row + a.keys, width - a.keys, -std::numeric_limits<float>::infinity());
    }
    multiply_add(scores.data(), stride, query.data(), a.dim, panels, kPanel * a.dim, rows, a.dim,
                 a.keys);
    for (int64_t group = 0; group < count; group += kGroup) {
      float factor[kGroup] = {};  // 0 for the rows past the last query
      float* first = scores.data() + group * stride;
      for (int64_t i = 0; i < std::min(kGroup, count - group); ++i) {
        float* row = first + i * stride;
        factor[i] = 1.0f / exponentials(row, largest(row, width), width);
      }
      add_rows(sum.data(), first, stride, factor, a.keys);
    }
  }
  std::copy_n(sum.data(), a.keys, sums);
}

}  // namespace

at::Tensor attention_colsum(const at::Tensor& q, const at::Tensor& k, double scale) {
  check_attention_colsum(q, k);
  const int64_t rows = q.size(0), heads = q.size(1), queries = q.size(2), dim = q.size(3);
  const int64_t keys = k.size(2);
  const at::Tensor out = q.new_zeros({rows, keys}, at::kFloat);
  if (q.numel() == 0 || k.numel() == 0) return out;
  const Arguments a{Heads(q), Heads(k), queries, keys, dim, static_cast<float>(scale),
                    type_of(q, "attention_colsum")};
  const int64_t share = std::max(round_up((queries + kShares - 1) / kShares, kMaxBlock), kMaxBlock);
  const int64_t shares = (queries + share - 1) / share;
  std::vector<float> partial(rows * heads * shares * keys);
  at::parallel_for(0, rows * heads * shares, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> panels(round_up(keys, kPanel) * dim);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t r = i / shares / heads, h = i / shares % heads, start = i % shares * share;
      if (i == begin || i % shares == 0) pack_keys(panels.data(), a.k, r, h, keys, dim, a.type);
      add_softmax(partial.data() + i * keys, a, r, h, panels.data(), start,
                  std::min(start + share, queries));
    }
  });
  float* sums = out.mutable_data_ptr<float>();
  for (int64_t i = 0; i < rows * heads * shares; ++i) {
    float* to = sums + i / shares / heads * keys;
    for (int64_t j = 0; j < keys; ++j) to[j] += partial[i * keys + j];
  }
  fastguide::scale(sums, 1.0f / static_cast<float>(heads), rows * keys);
  return out;
}

}  // namespace fastguide
