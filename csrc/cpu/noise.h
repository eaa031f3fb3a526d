// A run of normals on the CPU.
#pragma once

#include <cstdint>

namespace fastguide {

// Write the normals of elements [4 block, 4 block + count) of one sample; `count` is any number, and
// `out` has room for it rounded up to a multiple of 4.
void fill_normals(float* out, uint64_t seed, uint32_t evaluation, uint64_t block, int64_t count);

}  // namespace fastguide
