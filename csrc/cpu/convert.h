// The three types of floats on the CPU: one in two bytes as a float and back, by bit arithmetic that
// vectorises.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <cstring>

namespace fastguide {

enum class Type { kFloat, kBFloat16, kHalf };

inline Type type_of(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kFloat: return Type::kFloat;
    case at::kBFloat16: return Type::kBFloat16;
    case at::kHalf: return Type::kHalf;
    default: TORCH_CHECK(false, "dtype ", tensor.scalar_type(), "; call the ops of fastguide.ops");
  }
}

inline float as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t as_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float from_bfloat16(uint16_t bits) { return as_float(static_cast<uint32_t>(bits) << 16); }

inline uint16_t to_bfloat16(float value) {  // round to nearest even; NaN stays NaN
  const uint32_t bits = as_bits(value);
  const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  return static_cast<uint16_t>(value != value ? 0x7FC0u : rounded);
}

inline float from_half(uint16_t bits) {
  const uint32_t magnitude = static_cast<uint32_t>(bits & 0x7FFFu) << 13;
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const float scaled = as_float(magnitude) * 0x1p112f;  // moves the exponent; exact for subnormals
  const uint32_t special = magnitude | 0x7F800000u;     // infinity and NaN
  return as_float((magnitude >= 0x0F800000u ? special : as_bits(scaled)) | sign);
}

inline uint16_t to_half(float value) {  // round to nearest even; overflow to infinity
  const uint32_t bits = as_bits(value), sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  // normal: shift the exponent and round; subnormal: let a float addition round at 2^-24
  const uint32_t normal = (magnitude - 0x38000000u + 0x0FFFu + ((magnitude >> 13) & 1u)) >> 13;
  const uint32_t subnormal = as_bits(as_float(magnitude) + 0.5f) - 0x3F000000u;
  uint32_t out = magnitude < 0x38800000u ? subnormal : normal;
  out = magnitude >= 0x477FF000u ? 0x7C00u : out;
  out = magnitude > 0x7F800000u ? 0x7E00u : out;
  return static_cast<uint16_t>(out | sign);
}

}  // namespace fastguide
