// The ops on the CPU, one file each; fastguide/ops checks their arguments and tells what they are.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>

namespace fastguide {

at::Tensor blur(const at::Tensor& x, const std::optional<at::Tensor>& sigmas, double down,
                double across, int64_t height, int64_t width, int64_t kernel_size);

at::Tensor gram(const at::Tensor& x, at::TensorList branches, const at::Tensor& base,
                int64_t deltas, const std::optional<at::Tensor>& factor, int64_t factored);

std::tuple<at::Tensor, at::Tensor, at::Tensor> group_norm(const at::Tensor& tokens,
                                                          const at::Tensor& gamma,
                                                          const at::Tensor& beta, int64_t groups,
                                                          double eps, bool silu);

std::tuple<at::Tensor, at::Tensor, at::Tensor> group_norm_backward(
    const at::Tensor& outward, const at::Tensor& tokens, const at::Tensor& mean,
    const at::Tensor& inverse, const at::Tensor& gamma, const at::Tensor& beta, bool silu);

at::Tensor noise(const at::Tensor& seeds, int64_t evaluation, int64_t numel,
                 const std::optional<at::Tensor>& counter);

void step(at::Tensor& state, at::TensorList branches, const at::Tensor& weights,
          const at::Tensor& table, const at::Tensor& evaluation,
          const std::optional<at::Tensor>& seeds, const std::optional<at::Tensor>& noise,
          const std::optional<at::Tensor>& net_input, at::Tensor& first_bad, int64_t reads,
          int64_t writes, const std::optional<at::Tensor>& variance,
          const std::optional<at::Tensor>& bound, int64_t extra, int64_t deltas,
          const std::optional<at::Tensor>& factor, int64_t factored,
          const std::optional<at::Tensor>& number);

at::Tensor identity_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                              const at::Tensor& context_k, const at::Tensor& context_v,
                              double scale, const std::optional<at::Tensor>& context_mask);

at::Tensor attention_colsum(const at::Tensor& q, const at::Tensor& k, double scale);

std::tuple<at::Tensor, at::Tensor> self_attention(const at::Tensor& qkv, int64_t heads);

at::Tensor self_attention_backward(const at::Tensor& outward, const at::Tensor& qkv,
                                   const at::Tensor& out, const at::Tensor& lse, int64_t heads);

}  // namespace fastguide
