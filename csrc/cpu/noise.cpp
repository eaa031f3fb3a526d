// noise: standard normals by (seed, evaluation, element). Writes 4 bytes per element, reads nothing.

#include "noise.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <optional>

#include "../checks.h"
#include "../philox.h"
#include "clones.h"
#include "ops.h"

namespace fastguide {

namespace {

constexpr int64_t kBlocks = 128;  // words of so many blocks lie in the L1 cache between the two loops

}  // namespace

// Two loops, words and then normals: in one, the registers do not suffice, and it takes a third longer.
FASTGUIDE_CLONES void fill_normals(float* __restrict out, uint64_t seed, uint32_t evaluation,
                                   uint64_t block, int64_t count) {
  alignas(64) uint32_t x[kBlocks], y[kBlocks], z[kBlocks], w[kBlocks];
  for (int64_t left = (count + 3) / 4; left > 0; left -= kBlocks) {
    const int64_t blocks = std::min(left, kBlocks);
    for (int64_t i = 0; i < blocks; ++i) {
      const Words words = random_words(seed, evaluation, block + static_cast<uint64_t>(i));
      x[i] = words.x, y[i] = words.y, z[i] = words.z, w[i] = words.w;
    }
    for (int64_t i = 0; i < blocks; ++i) {
      const Normals n = box_muller({x[i], y[i], z[i], w[i]});
      out[4 * i] = n.x;
      out[4 * i + 1] = n.y;
      out[4 * i + 2] = n.z;
      out[4 * i + 3] = n.w;
    }
    block += static_cast<uint64_t>(blocks);
    out += 4 * blocks;
  }
}

namespace {

constexpr int64_t kChunk = 4096;

}  // namespace

// The evaluation is that of the counter, where there is one; of each sample where it has as many.
at::Tensor noise(const at::Tensor& seeds, int64_t evaluation, int64_t numel,
                 const std::optional<at::Tensor>& counter) {
  check_noise(seeds, numel, counter);
  const int64_t batch = seeds.numel();
  at::Tensor out = seeds.new_empty({batch, numel}, at::kFloat);
  const int64_t* seed = seeds.const_data_ptr<int64_t>();
  const int64_t* number = counter ? counter->const_data_ptr<int64_t>() : &evaluation;
  const int64_t each = counter && counter->numel() == batch ? 1 : 0;
  float* data = out.mutable_data_ptr<float>();
  const int64_t chunks = (numel + kChunk - 1) / kChunk;
  at::parallel_for(0, batch * chunks, 1, [&](int64_t begin, int64_t end) {
    alignas(64) float buffer[kChunk];
    for (int64_t i = begin; i < end; ++i) {
      const int64_t sample = i / chunks, start = i % chunks * kChunk;
      const int64_t count = std::min(kChunk, numel - start);
      fill_normals(buffer, static_cast<uint64_t>(seed[sample]),
                   static_cast<uint32_t>(number[each * sample]), static_cast<uint64_t>(start / 4), count);
      std::copy_n(buffer, count, data + sample * numel + start);
    }
  });
  return out;
}

}  // namespace fastguide
