// What self_attention and its gradient share on the CPU: where a head of the packed projection lies.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cmath>

#include "../checks.h"
#include "../online_softmax.h"
#include "aligned.h"
#include "attention.h"
#include "clones.h"

namespace fastguide {

constexpr float kLn2 = 0.693147181f;

// q, k and v [rows, heads, tokens, dim] in a contiguous [rows, tokens, 3, heads, dim].
struct Packed {
  Heads q, k, v;

  Packed(const at::Tensor& qkv, int64_t heads) : Packed(parts(qkv, heads)) {}

 private:
  explicit Packed(const at::Tensor& parts) : q(parts[0]), k(parts[1]), v(parts[2]) {}

  static at::Tensor parts(const at::Tensor& qkv, int64_t heads) {
    return qkv.view({qkv.size(0), qkv.size(1), 3, heads, qkv.size(2) / 3 / heads})
        .permute({2, 0, 3, 1, 4});
  }
};

// [rows, tokens, heads dim], as [rows, heads, tokens, dim].
inline Heads by_head(const at::Tensor& tokens, int64_t heads) {
  return Heads(tokens.view({tokens.size(0), tokens.size(1), heads, tokens.size(2) / heads})
                   .transpose(1, 2));
}

}  // namespace fastguide
