// identity_attention on the GPU: q, k, v are read and out is written once; the context of a head is read
// by each block of queries, from the L2 cache. Nothing of size N x T is stored.

#include <ATen/ATen.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <optional>

#include "../checks.h"
#include "identity_attention.cuh"

namespace fastguide {
namespace {

template <class Way>
__global__ void __launch_bounds__(kThreads, Way::kBlocks)
identity_attention_kernel(const Arguments a) {
  __shared__ typename Way::Shared tile;
  Way::run(a, blockIdx.x, tile);
}

template <class Way>
void launch(const Arguments& a, int64_t rows) {
  const int64_t blocks = (a.queries + Way::kQueries - 1) / Way::kQueries * a.heads * rows;
  TORCH_CHECK(blocks < int64_t{1} << 31, "identity_attention: q has too many queries and heads");
  identity_attention_kernel<Way>
      <<<static_cast<unsigned>(blocks), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(a);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

template <class T>
void launch_tensor_cores(const Arguments& a, int64_t rows) {
  if (a.dim <= 64) return launch<TensorCores<T, 64>>(a, rows);
  if (a.dim <= 96) return launch<TensorCores<T, 96>>(a, rows);
  if (a.dim <= 128) return launch<TensorCores<T, 128>>(a, rows);
  launch<TensorCores<T, 256>>(a, rows);
}

void launch_fp32(const Arguments& a, int64_t rows) {
  if (a.dim <= 64) return launch<Fp32<64>>(a, rows);
  if (a.dim <= 128) return launch<Fp32<128>>(a, rows);
  launch<Fp32<256>>(a, rows);
}

// A smaller dim is padded with zeros in registers and shared memory.
void launch_type(const Arguments& a, int64_t rows, at::ScalarType type) {
  if (type == at::kFloat) return launch_fp32(a, rows);
  if (type == at::kHalf) return launch_tensor_cores<Half>(a, rows);
  launch_tensor_cores<BFloat16>(a, rows);
}

Heads heads_of(const at::Tensor& x) {
  return {x.const_data_ptr(), x.stride(0), x.stride(1), x.stride(2)};
}

bool is_aligned(const at::Tensor& x) {
  const int64_t unit = 16 / x.element_size();
  return reinterpret_cast<uintptr_t>(x.const_data_ptr()) % 16 == 0 && x.stride(0) % unit == 0 &&
         x.stride(1) % unit == 0 && x.stride(2) % unit == 0 && x.size(3) % unit == 0;
}

at::Tensor identity_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                              const at::Tensor& context_k, const at::Tensor& context_v,
                              double scale, const std::optional<at::Tensor>& context_mask) {
  check_identity_attention(q, k, v, context_k, context_v, context_mask);
  const int64_t rows = q.size(0), heads = q.size(1), queries = q.size(2), dim = q.size(3);
  const at::ScalarType type = q.scalar_type();
  TORCH_CHECK(dim <= 256 && context_k.size(2) < int64_t{1} << 31,
              "identity_attention: D is ", dim, " and there are ", context_k.size(2),
              " context keys; at most 256 and 2^31 - 1 are supported");
  const c10::cuda::CUDAGuard guard(q.device());
  int major = 0;
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, q.get_device()));
  TORCH_CHECK(type == at::kFloat || major >= 8, "q.dtype is ", type, ", but ", q.device(),
              " has compute capability ", major, ".x; 16-bit attention needs 8.0, use fp32");
  const at::Tensor out = at::empty({rows, queries, heads, dim}, q.options());
  if (out.numel() == 0) return out.transpose(1, 2);
  const bool masked = context_mask.has_value();
  const bool aligned = is_aligned(q) && is_aligned(k) && is_aligned(v) && is_aligned(context_k) &&
                       is_aligned(context_v);
  const Arguments a{heads_of(q),
                    heads_of(k),
                    heads_of(v),
                    heads_of(context_k),
                    heads_of(context_v),
                    masked ? context_mask->const_data_ptr<bool>() : nullptr,
                    masked ? context_mask->stride(0) : 0,
                    masked ? context_mask->stride(1) : 0,
                    queries,
                    static_cast<int>(heads),
                    static_cast<int>(context_k.size(2)),
                    static_cast<int>(dim),
                    static_cast<float>(scale) * kLog2E,
                    aligned,
                    out.mutable_data_ptr()};
  launch_type(a, rows, type);
  return out.transpose(1, 2);
}

}  // namespace
}  // namespace fastguide

TORCH_LIBRARY_IMPL(fastguide, CUDA, m) {
  m.impl("identity_attention", &fastguide::identity_attention);
}
