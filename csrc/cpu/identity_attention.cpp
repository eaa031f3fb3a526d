// identity_attention: each query attends to its own key and to the context keys, and to nothing else.
//
// Reads q, k, v and writes out once; the context of a head is packed once by each thread that meets
// it. 4 (T + 1) D flops a query and head; scores exist for a block of queries at a time.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <vector>

#include "../checks.h"
#include "../online_softmax.h"
#include "attention.h"
#include "clones.h"
#include "ops.h"

namespace fastguide {
namespace {

constexpr int64_t kBlock = 8 * kGroup;  // queries
constexpr int64_t kChunk = 4 * kPanel;  // context keys whose scores exist at a time

FASTGUIDE_CLONES float dot(const float* __restrict a, const float* __restrict b, int64_t count) {
  float sums[kLane] = {};
  for (int64_t i = 0; i < count; i += kLane) {
    for (int64_t j = 0; j < kLane; ++j) sums[j] += a[i + j] * b[i + j];
  }
  float sum = 0.0f;
  for (int64_t j = 0; j < kLane; ++j) sum += sums[j];
  return sum;
}

FASTGUIDE_CLONES void scale(float* __restrict x, float factor, int64_t count) {
  for (int64_t i = 0; i < count; ++i) x[i] *= factor;
}

struct Arguments {
  Heads q, k, v, context_k, context_v;
  const bool* mask;  // or null
  int64_t mask_row, mask_key;
  int64_t heads, queries, keys, dim;
  float scale;
  Type type;
  void* out;  // [R, queries, heads, dim]
};

// What one thread needs; rows are padded to whole vectors, the padding is zero and stays so.
struct Scratch {
  int64_t width, chunk;
  std::vector<float> keys, values, bias, query, key, accumulated, scores;

  explicit Scratch(const Arguments& a)
      : width(round_up(a.dim, kLane)),
        chunk(std::min(kChunk, round_up(a.keys, kLane))),
        keys(round_up(a.keys, kPanel) * a.dim),
        values(round_up(a.dim, kPanel) * a.keys),
        bias(round_up(a.keys, kLane), -std::numeric_limits<float>::infinity()),
        query(kBlock * width),
        key(width),
        accumulated(kBlock * width),
        scores(kBlock * chunk) {}
};

// The context of one head; a score starts as its key's bias: 0, or -inf where there is no key.
void pack(const Arguments& a, Scratch& s, int64_t r, int64_t h) {
  pack_keys(s.keys.data(), a.context_k, r, h, a.keys, a.dim, a.type);
  pack_values(s.values.data(), a.context_v, r, h, a.keys, a.dim, a.type);
  for (int64_t t = 0; t < a.keys; ++t) {
    const bool attend = a.mask == nullptr || a.mask[r * a.mask_row + t * a.mask_key];
    s.bias[t] = attend ? 0.0f : -std::numeric_limits<float>::infinity();
  }
}

void run(const Arguments& a, Scratch& s, int64_t r, int64_t h, int64_t start, int64_t count) {
  OnlineSoftmax softmax[kBlock];
  for (int64_t i = 0; i < count; ++i) {
    float* query = s.query.data() + i * s.width;
    load_run(query, a.q.data, a.q.at(r, h, start + i), a.dim, a.type);
    scale(query, a.scale * kLog2E, a.dim);
    load_run(s.key.data(), a.k.data, a.k.at(r, h, start + i), a.dim, a.type);
    load_run(s.accumulated.data() + i * s.width, a.v.data, a.v.at(r, h, start + i), a.dim, a.type);
    softmax[i] = only(dot(query, s.key.data(), s.width));
  }
  const int64_t rows = round_up(count, kGroup);
  for (int64_t first = 0; first < a.keys; first += s.chunk) {
    const int64_t keys = std::min(s.chunk, a.keys - first), width = round_up(keys, kLane);
    for (int64_t i = 0; i < rows; ++i) {
      std::copy_n(s.bias.data() + first, width, s.scores.data() + i * s.chunk);
    }
    multiply_add(s.scores.data(), s.chunk, s.query.data(), s.width, s.keys.data() + first * a.dim,
                 kPanel * a.dim, rows, a.dim, keys);
    for (int64_t i = 0; i < count; ++i) {
      float* scores = s.scores.data() + i * s.chunk;
      const float factor = softmax[i].raise(largest(scores, width));
      if (factor != 1.0f) scale(s.accumulated.data() + i * s.width, factor, s.width);
      softmax[i].sum += exponentials(scores, softmax[i].max, width);
    }
    multiply_add(s.accumulated.data(), s.width, s.scores.data(), s.chunk,
                 s.values.data() + first * kPanel, kPanel * a.keys, rows, keys, a.dim);
  }
  for (int64_t i = 0; i < count; ++i) {
    const int64_t at = ((r * a.queries + start + i) * a.heads + h) * a.dim;
    store_run(a.out, at, s.accumulated.data() + i * s.width, 1.0f / softmax[i].sum, a.dim, a.type);
  }
}

}  // namespace

at::Tensor identity_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                              const at::Tensor& context_k, const at::Tensor& context_v,
                              double scale, const std::optional<at::Tensor>& context_mask) {
  check_identity_attention(q, k, v, context_k, context_v, context_mask);
  const int64_t rows = q.size(0), heads = q.size(1), queries = q.size(2), dim = q.size(3);
  const int64_t keys = context_k.size(2);
  const at::Tensor out = q.new_empty({rows, queries, heads, dim});
  if (out.numel() == 0) return out.transpose(1, 2);
  const bool masked = context_mask.has_value();
  const Arguments a{Heads(q),
                    Heads(k),
                    Heads(v),
                    Heads(context_k),
                    Heads(context_v),
                    masked ? context_mask->const_data_ptr<bool>() : nullptr,
                    masked ? context_mask->stride(0) : 0,
                    masked ? context_mask->stride(1) : 0,
                    heads,
                    queries,
                    keys,
                    dim,
                    static_cast<float>(scale),
                    type_of(q, "identity_attention"),
                    out.mutable_data_ptr()};
  const int64_t blocks = (queries + kBlock - 1) / kBlock;
  at::parallel_for(0, rows * heads * blocks, 1, [&](int64_t begin, int64_t end) {
    Scratch scratch(a);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t r = i / blocks / heads, h = i / blocks % heads, start = i % blocks * kBlock;
      if (i == begin || i % blocks == 0) pack(a, scratch, r, h);
      run(a, scratch, r, h, start, std::min(kBlock, queries - start));
    }
  });
  return out.transpose(1, 2);
}

}  // namespace fastguide
