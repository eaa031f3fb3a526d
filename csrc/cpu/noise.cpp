// noise: standard normals by (seed, evaluation, element). Writes 4 bytes per element, reads nothing.

#include "noise.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>

#include "../philox.h"
#include "clones.h"

namespace fastguide {

FASTGUIDE_CLONES void fill_normals(float* __restrict out, uint64_t seed, uint32_t evaluation,
                                   uint64_t block, int64_t count) {
  const int64_t blocks = (count + 3) / 4;
#pragma GCC ivdep
  for (int64_t i = 0; i < blocks; ++i) {
    const Normals n = normals(seed, evaluation, block + static_cast<uint64_t>(i));
    out[4 * i] = n.x;
    out[4 * i + 1] = n.y;
    out[4 * i + 2] = n.z;
    out[4 * i + 3] = n.w;
  }
}

namespace {

constexpr int64_t kChunk = 4096;

at::Tensor noise(const at::Tensor& seeds, int64_t evaluation, int64_t numel) {
  TORCH_CHECK(seeds.is_contiguous() && seeds.scalar_type() == at::kLong && numel >= 0,
              "noise: call fastguide.ops.noise");
  const int64_t batch = seeds.numel();
  at::Tensor out = at::empty({batch, numel}, seeds.options().dtype(at::kFloat));
  const int64_t* seed = seeds.const_data_ptr<int64_t>();
  float* data = out.mutable_data_ptr<float>();
  const int64_t chunks = (numel + kChunk - 1) / kChunk;
  at::parallel_for(0, batch * chunks, 1, [&](int64_t begin, int64_t end) {
    alignas(64) float buffer[kChunk];
    for (int64_t i = begin; i < end; ++i) {
      const int64_t sample = i / chunks, start = i % chunks * kChunk;
      const int64_t count = std::min(kChunk, numel - start);
      fill_normals(buffer, static_cast<uint64_t>(seed[sample]), static_cast<uint32_t>(evaluation),
                   static_cast<uint64_t>(start / 4), count);
      std::copy_n(buffer, count, data + sample * numel + start);
    }
  });
  return out;
}

}  // namespace
}  // namespace fastguide

TORCH_LIBRARY_IMPL(fastguide, CPU, m) { m.impl("noise", &fastguide::noise); }
