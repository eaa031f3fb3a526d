// self_attention_backward: the gradients of q, k and v, packed as they are.
//
// With P = softmax(q k^T scale), recomputed from the log of its sum, and D = rowsum(outward out):
//   of_v = P^T outward, dS = P (outward v^T - D), of_q = scale dS k, of_k = scale dS^T q.
// A thread takes a head; for a chunk of its keys, whose gradients are summed meanwhile, it passes
// blocks of queries. Reads k and v once, and what belongs to queries once for each chunk.
// 10 N^2 D flops and N^2 exponentials a head.

#include "ops.h"
#include "self_attention.h"

namespace fastguide {
namespace {

constexpr int64_t kBlock = 16 * kGroup;  // queries
constexpr int64_t kChunk = 4 * kPanel;   // keys

FASTGUIDE_CLONES void scale(float* __restrict x, float factor, int64_t count) {
  for (int64_t i = 0; i < count; ++i) x[i] *= factor;
}

FASTGUIDE_CLONES float dot(const float* __restrict a, const float* __restrict b, int64_t count) {
  float sums[kLane] = {};
  for (int64_t i = 0; i < count; i += kLane) {
    for (int64_t j = 0; j < kLane; ++j) sums[j] += a[i + j] * b[i + j];
  }
  float sum = 0.0f;
  for (int64_t j = 0; j < kLane; ++j) sum += sums[j];
  return sum;
}

struct Arguments {
  Packed qkv;
  Heads outward, out, of_q;
  int64_t heads, tokens, dim;
  float scale;
  Type type;
  const float* lse;  // [rows, heads, tokens]
  void* gradient;    // of qkv, as it lies
};

// What one thread needs; `width` is a row of a gradient, `stride` of the scores.
struct Scratch {
  int64_t width, chunk, block, stride;
  Aligned<float> keys, key_rows, values, query, outward;  // packed
  Aligned<float> of_q, of_k, of_v;
  Aligned<float> weights, slopes, start, shift;

  explicit Scratch(const Arguments& a)
      : width(round_up(a.dim, kLane)),
        chunk(round_up(std::min(kChunk, a.tokens), kPanel)),
        block(round_up(std::min(kBlock, a.tokens), kGroup)),
        stride(chunk + kLane),  // not a power of 2
        keys(chunk * a.dim),
        key_rows(chunk * round_up(a.dim, kPanel)),
        values(chunk * a.dim),
        query(block * round_up(a.dim, kPanel)),
        outward(block * round_up(a.dim, kPanel)),
        of_q(round_up(a.tokens, kGroup) * width),
        of_k(round_up(chunk, kGroup) * width),
        of_v(round_up(chunk, kGroup) * width),
        weights(block * stride),
        slopes(block * stride),
        start(round_up(a.tokens, kGroup)),
        shift(round_up(a.tokens, kGroup)) {}
};

// The numbers of a token, zero up to `s.width`: where they lie, or if that will not do, in `buffer`.
const float* token(float* buffer, const Arguments& a, const Heads& x, int64_t at) {
  if (a.type == Type::kFloat && a.dim % kLane == 0) return static_cast<const float*>(x.data) + at;
  load_run(buffer, x.data, at, a.dim, a.type);
  return buffer;
}

// Where the scores and their slopes of each query start: -lse in units of log2, and -D.
void start_head(const Arguments& a, Scratch& s, int64_t r, int64_t h) {
  float *outward = s.of_k.data(), *out = s.of_v.data();  // not used yet
  std::fill_n(outward, s.width, 0.0f);
  std::fill_n(out, s.width, 0.0f);
  const float* lse = a.lse + (r * a.heads + h) * a.tokens;
  for (int64_t i = 0; i < a.tokens; ++i) {
    s.shift.data()[i] = -dot(token(outward, a, a.outward, a.outward.at(r, h, i)),
                             token(out, a, a.out, a.out.at(r, h, i)), s.width);
    s.start.data()[i] = -kLog2E * lse[i];
  }
  std::fill_n(s.of_q.data(), a.tokens * s.width, 0.0f);
}

// c[rows, columns] += a b^T, a packed in panels of `count` rows, b as keys are.
void scores(float* c, int64_t stride, const float* a, int64_t count, const float* b, int64_t dim,
            int64_t rows, int64_t columns) {
  for (int64_t d = 0; d < dim; d += kPanel) {
    multiply_add(c, stride, a + d * count, kPanel, b + d * kPanel, kPanel * dim, rows,
                 std::min(kPanel, dim - d), columns);
  }
}

// What queries `first` ... `first + count` add to the gradients, with `keys` keys packed. Rows and
// columns up to whole groups and vectors are computed too, and taken by nothing that is stored.
void add_block(const Arguments& a, Scratch& s, int64_t r, int64_t h, int64_t first, int64_t count,
               int64_t keys) {
  const int64_t rows = round_up(count, kGroup), padded = round_up(keys, kLane);
  float *weights = s.weights.data(), *slopes = s.slopes.data();
  float *query = s.query.data(), *outward = s.outward.data();
  pack_values(query, a.qkv.q.from(first), r, h, count, a.dim, a.type);
  pack_values(outward, a.outward.from(first), r, h, count, a.dim, a.type);
  scale(query, a.scale * kLog2E, count * round_up(a.dim, kPanel));
  for (int64_t i = 0; i < rows; ++i) {
    std::fill_n(weights + i * s.stride, padded, s.start.data()[first + i]);
    std::fill_n(slopes + i * s.stride, padded, s.shift.data()[first + i]);
  }
  scores(weights, s.stride, query, count, s.keys.data(), a.dim, rows, keys);
  scores(slopes, s.stride, outward, count, s.values.data(), a.dim, rows, keys);
  for (int64_t i = 0; i < count; ++i) {
    exponential_slopes(weights + i * s.stride, slopes + i * s.stride, padded);
  }
  const int64_t key_rows = round_up(keys, kGroup);
  multiply_add(s.of_q.data() + first * s.width, s.width, slopes, s.stride, s.key_rows.data(),
               kPanel * keys, rows, keys, a.dim);
  multiply_add_transposed(s.of_k.data(), s.width, slopes, s.stride, query, kPanel * count, key_rows,
                          count, a.dim);
  multiply_add_transposed(s.of_v.data(), s.width, weights, s.stride, outward, kPanel * count,
                          key_rows, count, a.dim);
}

void head(const Arguments& a, Scratch& s, int64_t r, int64_t h) {
  start_head(a, s, r, h);
  for (int64_t first = 0; first < a.tokens; first += kChunk) {
    const int64_t keys = std::min(kChunk, a.tokens - first);
    pack_keys(s.keys.data(), a.qkv.k.from(first), r, h, keys, a.dim, a.type);
    pack_keys(s.values.data(), a.qkv.v.from(first), r, h, keys, a.dim, a.type);
    pack_values(s.key_rows.data(), a.qkv.k.from(first), r, h, keys, a.dim, a.type);
    std::fill_n(s.of_k.data(), round_up(keys, kGroup) * s.width, 0.0f);
    std::fill_n(s.of_v.data(), round_up(keys, kGroup) * s.width, 0.0f);
    for (int64_t block = 0; block < a.tokens; block += kBlock) {
      add_block(a, s, r, h, block, std::min(kBlock, a.tokens - block), keys);
    }
    for (int64_t i = 0; i < keys; ++i) {  // the queries were multiplied by scale log2(e)
      const float *of_k = s.of_k.data() + i * s.width, *of_v = s.of_v.data() + i * s.width;
      const int64_t at = a.of_q.at(r, h, first + i), all = a.heads * a.dim;
      store_run(a.gradient, at + all, of_k, kLn2, a.dim, a.type);
      store_run(a.gradient, at + 2 * all, of_v, 1.0f, a.dim, a.type);
    }
  }
  for (int64_t i = 0; i < a.tokens; ++i) {
    store_run(a.gradient, a.of_q.at(r, h, i), s.of_q.data() + i * s.width, a.scale, a.dim, a.type);
  }
}

}  // namespace

at::Tensor self_attention_backward(const at::Tensor& outward, const at::Tensor& qkv,
                                   const at::Tensor& out, const at::Tensor& lse, int64_t heads) {
  check_self_attention_backward(outward, qkv, out, lse, heads);
  const int64_t rows = qkv.size(0), tokens = qkv.size(1), dim = qkv.size(2) / 3 / heads;
  const at::Tensor gradient = qkv.new_empty(qkv.sizes());
  const Arguments a{Packed(qkv, heads),
                    by_head(outward, heads),
                    by_head(out, heads),
                    Packed(gradient, heads).q,
                    heads,
                    tokens,
                    dim,
                    1.0f / std::sqrt(static_cast<float>(dim)),
                    type_of(qkv, "self_attention"),
                    lse.const_data_ptr<float>(),
                    gradient.mutable_data_ptr()};
  at::parallel_for(0, rows * heads, 1, [&](int64_t begin, int64_t end) {
    Scratch scratch(a);
    for (int64_t i = begin; i < end; ++i) head(a, scratch, i / heads, i % heads);
  });
  return gradient;
}

}  // namespace fastguide
