// The two ways of identity_attention on a GPU: tensor cores for 16-bit numbers, fp32 arithmetic for
// fp32. Both hold the queries of a block in registers and let tiles of the context pass through shared
// memory; the scores never leave the registers.
#pragma once

#include <cstdint>

#include "../online_softmax.h"
#include "warp.cuh"

namespace fastguide {

constexpr int kThreads = 128;

// `[R, heads, tokens, dim]`, strides in elements, the last one 1.
struct Heads {
  const void* data;
  int64_t row, head, token;
};

struct Arguments {
  Heads q, k, v, context_k, context_v;
  const bool* mask;  // `[R, keys]`, or null
  int64_t mask_row, mask_key;
  int64_t queries;
  int heads, keys, dim;
  float scale;   // times log2(e)
  bool aligned;  // 16-byte access is possible: dim, strides and addresses allow it
  void* out;     // `[R, queries, heads, dim]`
};

// Which queries a block of threads works on.
struct Place {
  int64_t r, start;
  int h;
};

__device__ __forceinline__ Place place(const Arguments& a, int64_t block, int size) {
  const int64_t blocks = (a.queries + size - 1) / size;
  const int64_t r_and_h = block / blocks;
  return {r_and_h / a.heads, block % blocks * size, static_cast<int>(r_and_h % a.heads)};
}

template <class E>
__device__ __forceinline__ const E* token(const Heads& x, const Place& at, int64_t n) {
  return static_cast<const E*>(x.data) + at.r * x.row + at.h * x.head + n * x.token;
}

template <class E>
__device__ __forceinline__ E* output(const Arguments& a, const Place& at, int64_t n) {
  return static_cast<E*>(a.out) + ((at.r * a.queries + n) * a.heads + at.h) * a.dim;
}

// E at row[d ... d + COUNT); zero from `dim` on.
template <class E, int COUNT>
struct alignas(sizeof(E) * COUNT) Run {
  E of[COUNT];
};

template <int COUNT, class E>
__device__ __forceinline__ Run<E, COUNT> load(const E* row, int d, const Arguments& a) {
  if (a.aligned && d < a.dim) return *reinterpret_cast<const Run<E, COUNT>*>(row + d);
  Run<E, COUNT> run;
#pragma unroll
  for (int i = 0; i < COUNT; ++i) run.of[i] = d + i < a.dim ? row[d + i] : E(0);
  return run;
}

template <int COUNT, class E>
__device__ __forceinline__ void store(E* row, int d, const Arguments& a, const Run<E, COUNT>& run) {
  if (a.aligned) {
    if (d < a.dim) *reinterpret_cast<Run<E, COUNT>*>(row + d) = run;
    return;
  }
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    if (d + i < a.dim) row[d + i] = run.of[i];
  }
}

// Context keys [first, first + KEYS) of one head; past the last key zeros, with the bias -inf.
template <class E, int KEYS, int STRIDE>
struct alignas(16) Tile {
  E keys[KEYS * STRIDE], values[KEYS * STRIDE];
  float bias[KEYS];

  template <int DIM>
  __device__ __forceinline__ void fill(const Arguments& a, const Place& at, int first) {
    constexpr int kRun = 16 / sizeof(E);
    const int thread = threadIdx.x;
    __syncthreads();  // all have read the tile before
    for (int i = thread; i < KEYS * (DIM / kRun); i += kThreads) {
      const int key = i / (DIM / kRun), d = i % (DIM / kRun) * kRun;
      Run<E, kRun> k{}, v{};
      if (first + key < a.keys) {
        k = load<kRun>(token<E>(a.context_k, at, first + key), d, a);
        v = load<kRun>(token<E>(a.context_v, at, first + key), d, a);
      }
      *reinterpret_cast<Run<E, kRun>*>(keys + key * STRIDE + d) = k;
      *reinterpret_cast<Run<E, kRun>*>(values + key * STRIDE + d) = v;
    }
    for (int i = thread; i < KEYS; i += kThreads) {
      const int key = first + i;
      const bool attend =
          key < a.keys && (a.mask == nullptr || a.mask[at.r * a.mask_row + key * a.mask_key]);
      bias[i] = attend ? 0.0f : -INFINITY;
    }
    __syncthreads();
  }
};

// 16-bit numbers: a warp has 16 queries, a lane parts of queries g and g + 8 (see warp.cuh). The scores
// come out of one product as the other one takes them, so they are packed where they are.
template <class T, int DIM>
struct TensorCores {
  static constexpr int kKeys = 32;      // of a tile
  static constexpr int kQueries = kThreads / 2;
  static constexpr int kBlocks = DIM > 128 ? 2 : DIM > 64 ? 3 : 4;  // on one multiprocessor
  static constexpr int kStride = DIM + 8;  // rows begin 4 banks apart: no conflicts
  using Shared = Tile<uint16_t, kKeys, kStride>;

  static __device__ __forceinline__ uint32_t load_pair(const uint16_t* row, int d,
                                                       const Arguments& a) {
    const Run<uint16_t, 2> run = load<2>(row, d, a);
    return run.of[0] | static_cast<uint32_t>(run.of[1]) << 16;
  }

  static __device__ __forceinline__ float dot(uint32_t x, uint32_t y, float sum) {
    const Pair a = unpack<T>(x), b = unpack<T>(y);
    return a.high * b.high + (a.low * b.low + sum);
  }

  static __device__ __forceinline__ void run(const Arguments& a, int64_t block, Shared& tile) {
    const Place at = place(a, block, kQueries);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int64_t first_query = at.start + 16 * warp + g;

    uint32_t query[DIM / 16][4];
    float out[DIM / 8][4];
    OnlineSoftmax softmax[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      // past the last query its work is done again, and not stored
      const int64_t n = min(first_query + 8 * half, a.queries - 1);
      const uint16_t* q = token<uint16_t>(a.q, at, n);
      const uint16_t* k = token<uint16_t>(a.k, at, n);
      const uint16_t* v = token<uint16_t>(a.v, at, n);
      float score = 0.0f;
#pragma unroll
      for (int i = 0; i < DIM / 8; ++i) {
        const int d = 8 * i + 2 * t;
        const uint32_t pair = load_pair(q, d, a);
        query[i / 2][i % 2 * 2 + half] = pair;
        score = dot(pair, load_pair(k, d, a), score);
        const Pair own = unpack<T>(load_pair(v, d, a));
        out[i][2 * half] = own.low, out[i][2 * half + 1] = own.high;
      }
      softmax[half] = only(quad_sum(score) * a.scale);
      if (t != 0) softmax[half].sum = 0.0f;  // each lane sums its own keys, and this one is in one
    }

    for (int first = 0; first < a.keys; first += kKeys) {
      tile.template fill<DIM>(a, at, first);
      float scores[kKeys / 8][4] = {};
#pragma unroll
      for (int i = 0; i < DIM / 16; ++i) {
#pragma unroll
        for (int n = 0; n < kKeys / 8; n += 2) {  // both halves of the depth, for two groups of keys
          uint32_t b[4];
          const int key = 8 * (n + lane / 16) + lane % 8, d = 16 * i + lane / 8 % 2 * 8;
          load_matrices<false>(b, tile.keys + key * kStride + d);
          multiply_add<T>(scores[n], query[i], b[0], b[1]);
          multiply_add<T>(scores[n + 1], query[i], b[2], b[3]);
        }
      }
      float best[2] = {-INFINITY, -INFINITY};
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          scores[n][c] = scores[n][c] * a.scale + tile.bias[8 * n + 2 * t + c % 2];
          best[c / 2] = fmaxf(best[c / 2], scores[n][c]);
        }
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float factor = softmax[half].raise(quad_max(best[half]));
#pragma unroll
        for (int i = 0; i < DIM / 8; ++i) out[i][2 * half] *= factor, out[i][2 * half + 1] *= factor;
#pragma unroll
        for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
          for (int c = 2 * half; c < 2 * half + 2; ++c) {
            scores[n][c] = softmax[half].weight(scores[n][c]);
            softmax[half].sum += scores[n][c];
          }
        }
      }
#pragma unroll
      for (int n = 0; n < kKeys / 8; n += 2) {
        const uint32_t weights[4] = {pack<T>(scores[n][0], scores[n][1]),
                                     pack<T>(scores[n][2], scores[n][3]),
                                     pack<T>(scores[n + 1][0], scores[n + 1][1]),
                                     pack<T>(scores[n + 1][2], scores[n + 1][3])};
#pragma unroll
        for (int i = 0; i < DIM / 8; i += 2) {  // both halves of 16 keys, for two groups of columns
          uint32_t b[4];
          const int key = 8 * n + lane % 16, d = 8 * i + lane / 16 * 8;
          load_matrices<true>(b, tile.values + key * kStride + d);
          multiply_add<T>(out[i], weights, b[0], b[1]);
          multiply_add<T>(out[i + 1], weights, b[2], b[3]);
        }
      }
    }

#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float inverse = 1.0f / quad_sum(softmax[half].sum);
      const int64_t n = first_query + 8 * half;
      if (n >= a.queries) continue;  // of a whole quad
      uint16_t* row = output<uint16_t>(a, at, n);
#pragma unroll
      for (int i = 0; i < DIM / 8; ++i) {
        const uint32_t bits = pack<T>(inverse * out[i][2 * half], inverse * out[i][2 * half + 1]);
        const Run<uint16_t, 2> run = {static_cast<uint16_t>(bits), static_cast<uint16_t>(bits >> 16)};
        store(row, 8 * i + 2 * t, a, run);
      }
    }
  }
};

// fp32: four lanes share kShare queries, and each has every fourth run of four dimensions of them.
template <int DIM>
struct Fp32 {
  static constexpr int kKeys = DIM > 128 ? 16 : 32;
  static constexpr int kShare = DIM > 128 ? 1 : 2;  // as many as the registers hold
  static constexpr int kQueries = kThreads / 4 * kShare;
  static constexpr int kBlocks = DIM > 64 ? 2 : 3;  // on one multiprocessor
  static constexpr int kStep = 8;  // keys between two looks at the largest score
  using Shared = Tile<float, kKeys, DIM>;

  static __device__ __forceinline__ void run(const Arguments& a, int64_t block, Shared& tile) {
    const Place at = place(a, block, kQueries);
    const int t = threadIdx.x % 4;
    const int64_t first_query = at.start + threadIdx.x / 4 * kShare;

    float query[kShare][DIM / 4], out[kShare][DIM / 4];
    OnlineSoftmax softmax[kShare];
#pragma unroll
    for (int s = 0; s < kShare; ++s) {
      const int64_t n = min(first_query + s, a.queries - 1);
      const float* q = token<float>(a.q, at, n);
      const float* k = token<float>(a.k, at, n);
      const float* v = token<float>(a.v, at, n);
      float score = 0.0f;
#pragma unroll
      for (int i = 0; i < DIM / 16; ++i) {
        const int d = 16 * i + 4 * t;
        const Run<float, 4> q4 = load<4>(q, d, a), k4 = load<4>(k, d, a), v4 = load<4>(v, d, a);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          query[s][4 * i + e] = q4.of[e];
          out[s][4 * i + e] = v4.of[e];
          score += q4.of[e] * k4.of[e];
        }
      }
      softmax[s] = only(quad_sum(score) * a.scale);
    }

    for (int first = 0; first < a.keys; first += kKeys) {
      tile.template fill<DIM>(a, at, first);
#pragma unroll 1
      for (int key = 0; key < kKeys; key += kStep) {
        float scores[kShare][kStep] = {};
#pragma unroll
        for (int j = 0; j < kStep; ++j) {
#pragma unroll
          for (int i = 0; i < DIM / 16; ++i) {
            const float* from = tile.keys + (key + j) * DIM + 16 * i + 4 * t;
            const Run<float, 4> k4 = *reinterpret_cast<const Run<float, 4>*>(from);
#pragma unroll
            for (int s = 0; s < kShare; ++s) {
#pragma unroll
              for (int e = 0; e < 4; ++e) scores[s][j] += query[s][4 * i + e] * k4.of[e];
            }
          }
        }
#pragma unroll
        for (int s = 0; s < kShare; ++s) {
          float best = -INFINITY;
#pragma unroll
          for (int j = 0; j < kStep; ++j) {
            scores[s][j] = quad_sum(scores[s][j]) * a.scale + tile.bias[key + j];
            best = fmaxf(best, scores[s][j]);
          }
          const float factor = softmax[s].raise(best);
#pragma unroll
          for (int i = 0; i < DIM / 4; ++i) out[s][i] *= factor;
#pragma unroll
          for (int j = 0; j < kStep; ++j) {
            scores[s][j] = softmax[s].weight(scores[s][j]);
            softmax[s].sum += scores[s][j];
          }
        }
#pragma unroll
        for (int j = 0; j < kStep; ++j) {
#pragma unroll
          for (int i = 0; i < DIM / 16; ++i) {
            const float* from = tile.values + (key + j) * DIM + 16 * i + 4 * t;
            const Run<float, 4> v4 = *reinterpret_cast<const Run<float, 4>*>(from);
#pragma unroll
            for (int s = 0; s < kShare; ++s) {
#pragma unroll
              for (int e = 0; e < 4; ++e) out[s][4 * i + e] += scores[s][j] * v4.of[e];
            }
          }
        }
      }
    }

#pragma unroll
    for (int s = 0; s < kShare; ++s) {
      const int64_t n = first_query + s;
      if (n >= a.queries) continue;
      float* row = output<float>(a, at, n);
      const float inverse = 1.0f / softmax[s].sum;
#pragma unroll
      for (int i = 0; i < DIM / 16; ++i) {
        Run<float, 4> run;
#pragma unroll
        for (int e = 0; e < 4; ++e) run.of[e] = inverse * out[s][4 * i + e];
        store(row, 16 * i + 4 * t, a, run);
      }
    }
  }
};

}  // namespace fastguide
