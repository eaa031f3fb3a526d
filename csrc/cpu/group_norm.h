// What group_norm and its gradient share on the CPU: blocks of whole groups, a few tokens at a time.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <numeric>

#include "../checks.h"
#include "aligned.h"
#include "clones.h"
#include "dtype.h"

namespace fastguide {

constexpr int64_t kTokens = 32;  // a chunk; how many sums are in fp32 before they become fp64
constexpr int64_t kLanes = 16;   // buffers hold a multiple of so many channels
// Channels of a block, about: 1,024 tokens fit the L2 cache, of one map and of the gradient's three.
constexpr int64_t kWidth = 64, kWidthBackward = 32;

// Channels first ... first + width of one row: what is computed by one thread, on its own.
struct Block {
  int64_t row, first, width, padded;
};

// `tokens` [rows, count, channels] in blocks. Sums never cross channels but in their groups, so that
// neither the number of threads nor of rows changes a bit.
struct Blocks {
  int64_t rows, channels, width;

  // of `about` so many channels
  Blocks(const at::Tensor& tokens, int64_t groups, int64_t about)
      : rows(tokens.size(0)), channels(tokens.size(2)) {
    const int64_t group = channels / groups;
    const int64_t unit = channels % kLanes ? group : std::lcm(group, kLanes);
    width = unit * std::max<int64_t>(1, about / unit);
    if (size() < at::get_num_threads()) width = unit;
  }

  int64_t per_row() const { return (channels + width - 1) / width; }
  int64_t size() const { return rows * per_row(); }
  int64_t lanes() const { return (width + kLanes - 1) / kLanes * kLanes; }

  Block operator[](int64_t i) const {
    const int64_t first = i % per_row() * width, count = std::min(width, channels - first);
    return {i / per_row(), first, count, (count + kLanes - 1) / kLanes * kLanes};
  }
};

// Some tokens of a block in fp32.
template <typename T>
struct Chunk {
  T* data;
  int64_t stride;
};

// Tokens of a block from element `at` on: where they lie, or if that will not do, in `buffer`.
inline Chunk<const float> load(float* buffer, const void* data, Type type, int64_t at,
                               int64_t channels, const Block& block, int64_t count) {
  if (type == Type::kFloat && block.width == block.padded) {
    return {static_cast<const float*>(data) + at, channels};
  }
  if (block.width == channels && block.width == block.padded) {
    load_run(buffer, data, at, count * channels, type);
  } else {
    for (int64_t t = 0; t < count; ++t) {
      float* to = buffer + t * block.padded;
      load_run(to, data, at + t * channels, block.width, type);
      std::fill_n(to + block.width, block.padded - block.width, 0.0f);
    }
  }
  return {buffer, block.padded};
}

// Where results of a block go in fp32: their place, or if they lie otherwise there, a buffer.
inline Chunk<float> target(float* buffer, void* out, Type type, int64_t at, int64_t channels,
                           const Block& block) {
  const bool in_place = type == Type::kFloat && block.width == block.padded;
  return in_place ? Chunk<float>{static_cast<float*>(out) + at, channels}
                  : Chunk<float>{buffer, block.padded};
}

// What `target` put into the buffer, rounded into its place from element `at` on.
inline void store(const Chunk<float>& x, void* out, Type type, int64_t at, int64_t channels,
                  const Block& block, int64_t count) {
  if (type == Type::kFloat && block.width == block.padded) return;
  if (block.width == channels && block.width == block.padded) {
    store_run(out, at, x.data, 1.0f, count * channels, type);
  } else {
    for (int64_t t = 0; t < count; ++t) {
      store_run(out, at + t * channels, x.data + t * x.stride, 1.0f, block.width, type);
    }
  }
}

}  // namespace fastguide
