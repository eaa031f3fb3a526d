// noise on the GPU: standard normals by (seed, evaluation, element). Writes 4 bytes per element.

#include <ATen/ATen.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>

#include "../checks.h"
#include "../philox.h"

namespace fastguide {
namespace {

constexpr int kThreads = 256;

// The evaluation is `evaluation`, or where the counter is not null what lies there: for all samples,
// or for `each`.
// One thread per Philox block of four elements, grid-stride over the sample's blocks.
__global__ void __launch_bounds__(kThreads)
noise_kernel(float* __restrict__ out, const int64_t* __restrict__ seeds,
             const int64_t* __restrict__ counter, bool each, uint32_t evaluation, int64_t batch,
             int64_t numel, bool aligned) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t sample = blockIdx.y; sample < batch; sample += gridDim.y) {
    const uint64_t seed = static_cast<uint64_t>(seeds[sample]);
    if (counter != nullptr) evaluation = static_cast<uint32_t>(counter[each ? sample : 0]);
    float* row = out + sample * numel;
    for (int64_t block = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
         4 * block < numel; block += stride) {
      const Normals n = box_muller(random_words(seed, evaluation, static_cast<uint64_t>(block)));
      const int64_t at = 4 * block;
      if (aligned) {
        *reinterpret_cast<float4*>(row + at) = make_float4(n.x, n.y, n.z, n.w);
      } else {
        row[at] = n.x;
        if (at + 1 < numel) row[at + 1] = n.y;
        if (at + 2 < numel) row[at + 2] = n.z;
        if (at + 3 < numel) row[at + 3] = n.w;
      }
    }
  }
}

at::Tensor noise(const at::Tensor& seeds, int64_t evaluation, int64_t numel,
                 const std::optional<at::Tensor>& counter) {
  check_noise(seeds, numel, counter);
  const c10::cuda::CUDAGuard guard(seeds.device());
  const int64_t batch = seeds.numel();
  at::Tensor out = at::empty({batch, numel}, seeds.options().dtype(at::kFloat));
  if (out.numel() == 0) return out;
  const int64_t blocks = (numel + 3) / 4;
  const dim3 grid(static_cast<unsigned>(std::min<int64_t>((blocks + kThreads - 1) / kThreads, 4096)),
                  static_cast<unsigned>(std::min<int64_t>(batch, 65535)));
  noise_kernel<<<grid, kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
      out.mutable_data_ptr<float>(), seeds.const_data_ptr<int64_t>(),
      counter ? counter->const_data_ptr<int64_t>() : nullptr, counter && counter->numel() == batch,
      static_cast<uint32_t>(evaluation), batch, numel, numel % 4 == 0);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

}  // namespace
}  // namespace fastguide

TORCH_LIBRARY_IMPL(fastguide, CUDA, m) { m.impl("noise", &fastguide::noise); }
