// Branches, a stretch of a channel at a time.

#include "branch.h"

#include <algorithm>

namespace fastguide {
namespace {

template <typename T, typename Convert>
void load_spread(float* out, const void* data, int64_t at, int64_t stride, int64_t count,
                 Convert convert) {
  const T* from = static_cast<const T*>(data) + at;
  for (int64_t i = 0; i < count; ++i) out[i] = convert(from[i * stride]);
}

}  // namespace

Branch::Branch(const at::Tensor& view, const char* op)
    : data(view.const_data_ptr()),
      batch(view.stride(0)),
      channel(view.stride(1)),
      pixel(view.stride(2)),
      pixels(view.size(2)),
      type(type_of(view, op)) {
  if (pixels == 1) pixel = channel;
  if (pixels == 1 || view.size(1) == 1 || channel == pixels * pixel) pixels *= view.size(1);
}

void load(float* out, const Branch& b, int64_t sample, int64_t start, int64_t count) {
  for (int64_t done = 0; done < count;) {
    const int64_t first = (start + done) % b.pixels;
    const int64_t length = std::min(count - done, b.pixels - first);
    const int64_t at = sample * b.batch + (start + done) / b.pixels * b.channel + first * b.pixel;
    float* to = out + done;
    if (b.pixel == 1) {
      load_run(to, b.data, at, length, b.type);
    } else if (b.type == Type::kFloat) {
      load_spread<float>(to, b.data, at, b.pixel, length, [](float value) { return value; });
    } else if (b.type == Type::kBFloat16) {
      load_spread<uint16_t>(to, b.data, at, b.pixel, length, from_bfloat16);
    } else {
      load_spread<uint16_t>(to, b.data, at, b.pixel, length, from_half);
    }
    done += length;
  }
}

const void* in_line(const Branch& b, int64_t sample, int64_t start, int64_t count) {
  const int64_t first = start % b.pixels;
  if (b.pixel != 1 || first + count > b.pixels) return nullptr;
  const int64_t at = sample * b.batch + start / b.pixels * b.channel + first;
  return static_cast<const char*>(b.data) + at * (b.type == Type::kFloat ? 4 : 2);
}

}  // namespace fastguide
