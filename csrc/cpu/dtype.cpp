// Runs of fp32, bf16 or fp16 to and from fp32.

#include "dtype.h"

#include "clones.h"

namespace fastguide {

FASTGUIDE_CLONES void load_run(float* __restrict out, const void* data, int64_t at, int64_t count,
                               Type type) {
  if (type == Type::kFloat) {
    std::memcpy(out, static_cast<const float*>(data) + at, count * sizeof(float));
  } else if (type == Type::kBFloat16) {
    const uint16_t* from = static_cast<const uint16_t*>(data) + at;
    for (int64_t i = 0; i < count; ++i) out[i] = from_bfloat16(from[i]);
  } else {
    const uint16_t* from = static_cast<const uint16_t*>(data) + at;
    for (int64_t i = 0; i < count; ++i) out[i] = from_half(from[i]);
  }
}

FASTGUIDE_CLONES void store_run(void* out, int64_t at, const float* __restrict x, float coefficient,
                                int64_t count, Type type) {
  if (type == Type::kFloat) {
    float* to = static_cast<float*>(out) + at;
    for (int64_t i = 0; i < count; ++i) to[i] = coefficient * x[i];
  } else if (type == Type::kBFloat16) {
    uint16_t* to = static_cast<uint16_t*>(out) + at;
    for (int64_t i = 0; i < count; ++i) to[i] = to_bfloat16(coefficient * x[i]);
  } else {
    uint16_t* to = static_cast<uint16_t*>(out) + at;
    for (int64_t i = 0; i < count; ++i) to[i] = to_half(coefficient * x[i]);
  }
}

}  // namespace fastguide
