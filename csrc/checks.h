// What protects memory when an op is called raw, as torch.ops.fastguide.<op>: one function an op, the
// same for CPU and CUDA. What else can be wrong, and how it should be, fastguide/ops says before.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

namespace fastguide {

void check_step(const at::Tensor& state, at::TensorList branches, const at::Tensor& weights,
                const at::Tensor& table, const at::Tensor& evaluation,
                const std::optional<at::Tensor>& seeds, const std::optional<at::Tensor>& noise,
                const std::optional<at::Tensor>& net_input, const at::Tensor& first_bad,
                const std::optional<at::Tensor>& variance, const std::optional<at::Tensor>& bound,
                int64_t extra, const std::optional<at::Tensor>& factor, int64_t factored,
                const std::optional<at::Tensor>& number);

void check_gram(const at::Tensor& x, at::TensorList branches, const at::Tensor& base,
                const std::optional<at::Tensor>& factor, int64_t factored);

void check_blur(const at::Tensor& x, const std::optional<at::Tensor>& sigmas, int64_t height,
                int64_t width, int64_t kernel_size);

void check_noise(const at::Tensor& seeds, int64_t numel, const std::optional<at::Tensor>& counter);

void check_group_norm(const at::Tensor& tokens, const at::Tensor& gamma, const at::Tensor& beta,
                      int64_t groups);

void check_group_norm_backward(const at::Tensor& outward, const at::Tensor& tokens,
                               const at::Tensor& mean, const at::Tensor& inverse,
                               const at::Tensor& gamma, const at::Tensor& beta);

void check_identity_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                              const at::Tensor& context_k, const at::Tensor& context_v,
                              const std::optional<at::Tensor>& context_mask);

void check_attention_colsum(const at::Tensor& q, const at::Tensor& k);

void check_self_attention(const at::Tensor& qkv, int64_t heads);

void check_self_attention_backward(const at::Tensor& outward, const at::Tensor& qkv,
                                   const at::Tensor& out, const at::Tensor& lse, int64_t heads);

}  // namespace fastguide
