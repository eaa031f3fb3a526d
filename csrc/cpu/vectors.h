// Vectors of WIDTH numbers, which compilers keep in registers where these are as wide.
#pragma once

#include <cstdint>
#include <cstring>

#include "../inline.h"

namespace fastguide {

template <int64_t WIDTH>
struct Vectors {
  typedef float Float __attribute__((vector_size(WIDTH * sizeof(float))));
  typedef double Double __attribute__((vector_size(WIDTH * sizeof(double))));
  typedef uint32_t Bits __attribute__((vector_size(WIDTH * sizeof(uint32_t))));
  typedef uint16_t Half __attribute__((vector_size(WIDTH * sizeof(uint16_t))));
};

template <typename Vector, typename T>
FASTGUIDE_INLINE void read(Vector& vector, const T* from) {
  std::memcpy(&vector, from, sizeof vector);
}

template <typename Vector, typename T>
FASTGUIDE_INLINE void write(T* to, const Vector& vector) {
  std::memcpy(to, &vector, sizeof vector);
}

}  // namespace fastguide
