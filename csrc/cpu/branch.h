// Predictions `[B, channels, pixels]` of any strides and dtype, as runs of fp32.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "dtype.h"

namespace fastguide {

// Element i of a sample lies at sample * batch + i / pixels * channel + i % pixels * pixel.
struct Branch {
  const void* data = nullptr;
  int64_t batch = 0, channel = 0, pixel = 1;
  int64_t pixels = 1;  // of a channel; of the sample where all lie at one stride
  Type type = Type::kFloat;

  Branch() = default;
  Branch(const at::Tensor& view, const char* op);
};

// out[i] = element start + i of a sample.
void load(float* out, const Branch& branch, int64_t sample, int64_t start, int64_t count);

// Where the same elements lie one after the other, or null if they do not.
const void* in_line(const Branch& branch, int64_t sample, int64_t start, int64_t count);

}  // namespace fastguide
