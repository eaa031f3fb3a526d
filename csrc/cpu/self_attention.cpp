// self_attention: softmax(q k^T / sqrt(D)) v of a packed projection, and the log of the softmax's sum.
//
// A thread packs the keys and values of a head once, and takes a block of queries at a time; scores
// exist for a chunk of the keys. Reads qkv once, k and v again where several threads share a head.
// 4 N^2 D flops and N^2 exponentials a head.

#include <limits>
#include <tuple>

#include "ops.h"
#include "self_attention.h"

namespace fastguide {
namespace {

constexpr int64_t kBlock = 16 * kGroup;  // queries
constexpr int64_t kChunk = 4 * kPanel;   // keys whose scores exist at a time
constexpr float kInfinity = std::numeric_limits<float>::infinity();

FASTGUIDE_CLONES void scale(float* __restrict x, float factor, int64_t count) {
  for (int64_t i = 0; i < count; ++i) x[i] *= factor;
}

struct Arguments {
  Packed qkv;
  int64_t heads, tokens, dim;
  float scale;
  Type type;
  Heads out;
  void* to;
  float* lse;  // [rows, heads, tokens]
};

// What one thread needs; rows are padded to whole vectors, the padding is zero and stays so.
struct Scratch {
  int64_t width, block, stride;
  Aligned<float> keys, values, query, sums, scores;

  explicit Scratch(const Arguments& a)
      : width(round_up(a.dim, kLane)),
        block(round_up(std::min(kBlock, a.tokens), kGroup)),
        stride(std::min(kChunk, round_up(a.tokens, kLane)) + kLane),  // not a power of 2
        keys(round_up(a.tokens, kPanel) * a.dim),
        values(round_up(a.dim, kPanel) * a.tokens),
        query(block * width),
        sums(block * width),
        scores(block * stride) {}
};

void pack(const Arguments& a, Scratch& s, int64_t r, int64_t h) {
  pack_keys(s.keys.data(), a.qkv.k, r, h, a.tokens, a.dim, a.type);
  pack_values(s.values.data(), a.qkv.v, r, h, a.tokens, a.dim, a.type);
}

void run(const Arguments& a, Scratch& s, int64_t r, int64_t h, int64_t start, int64_t count) {
  const int64_t rows = round_up(count, kGroup);
  float *query = s.query.data(), *sums = s.sums.data(), *scores = s.scores.data();
  for (int64_t i = 0; i < count; ++i) {
    load_run(query + i * s.width, a.qkv.q.data, a.qkv.q.at(r, h, start + i), a.dim, a.type);
  }
  scale(query, a.scale * kLog2E, count * s.width);
  std::fill_n(sums, rows * s.width, 0.0f);
  OnlineSoftmax softmax[kBlock];
  std::fill_n(softmax, count, OnlineSoftmax{-kInfinity, 0.0f});
  for (int64_t first = 0; first < a.tokens; first += kChunk) {
    const int64_t keys = std::min(kChunk, a.tokens - first), width = round_up(keys, kLane);
    for (int64_t i = 0; i < rows; ++i) {
      std::fill_n(scores + i * s.stride, keys, 0.0f);
      std::fill_n(scores + i * s.stride + keys, width - keys, -kInfinity);
    }
    multiply_add(scores, s.stride, query, s.width, s.keys.data() + first * a.dim, kPanel * a.dim,
                 rows, a.dim, keys);
    for (int64_t i = 0; i < count; ++i) {
      float* row = scores + i * s.stride;
      const float factor = softmax[i].raise(largest(row, width));
      if (factor != 1.0f && first > 0) scale(sums + i * s.width, factor, s.width);
      softmax[i].sum += exponentials(row, softmax[i].max, width);
    }
    multiply_add(sums, s.width, scores, s.stride, s.values.data() + first * kPanel,
                 kPanel * a.tokens, rows, keys, a.dim);
  }
  float* lse = a.lse + (r * a.heads + h) * a.tokens + start;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t at = a.out.at(r, h, start + i);
    store_run(a.to, at, sums + i * s.width, 1.0f / softmax[i].sum, a.dim, a.type);
    lse[i] = kLn2 * (softmax[i].max + std::log2(softmax[i].sum));
  }
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> self_attention(const at::Tensor& qkv, int64_t heads) {
  check_self_attention(qkv, heads);
  const int64_t rows = qkv.size(0), tokens = qkv.size(1), width = qkv.size(2) / 3;
  const int64_t dim = width / heads;
  const at::Tensor out = qkv.new_empty({rows, tokens, width});
  const at::Tensor lse = qkv.new_empty({rows, heads, tokens}, at::kFloat);
  const Arguments a{Packed(qkv, heads),
                    heads,
                    tokens,
                    dim,
                    1.0f / std::sqrt(static_cast<float>(dim)),
                    type_of(qkv, "self_attention"),
                    by_head(out, heads),
                    out.mutable_data_ptr(),
                    lse.mutable_data_ptr<float>()};
  const int64_t blocks = (tokens + kBlock - 1) / kBlock;
  at::parallel_for(0, rows * heads * blocks, 1, [&](int64_t begin, int64_t end) {
    Scratch scratch(a);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t r = i / blocks / heads, h = i / blocks % heads, start = i % blocks * kBlock;
      if (i == begin || i % blocks == 0) pack(a, scratch, r, h);
      run(a, scratch, r, h, start, std::min(kBlock, tokens - start));
    }
  });
  return {out, lse};
}

}  // namespace fastguide
