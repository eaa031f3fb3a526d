// Memory of a kernel's own, on the borders of cache lines.
#pragma once

#include <cstdint>
#include <vector>

namespace fastguide {

// An array that starts with a cache line.
template <typename T>
class Aligned {
  struct alignas(64) Line {
    T lanes[64 / sizeof(T)];
  };
  std::vector<Line> lines_;

 public:
  explicit Aligned(int64_t count) : lines_(count * sizeof(T) / 64 + 1) {}
  T* data() { return lines_.data()->lanes; }
};

}  // namespace fastguide
