// The schemas of all ops and their kernels on the CPU: a table of contents. No other file of theirs
// includes torch/library.h, which takes longer to compile than a kernel.

#include <torch/library.h>

#include "cpu/ops.h"

TORCH_LIBRARY(fastguide, m) {
  m.def(
      "blur(Tensor x, Tensor? sigmas, float down, float across, int height, int width, "
      "int kernel_size) -> Tensor");
  m.def(
      "gram(Tensor x, Tensor[] branches, Tensor base, int deltas, Tensor? factor, int factored) "
      "-> Tensor");
  m.def(
      "group_norm(Tensor tokens, Tensor gamma, Tensor beta, int groups, float eps, bool silu) "
      "-> (Tensor, Tensor, Tensor)");
  m.def(
      "group_norm_backward(Tensor outward, Tensor tokens, Tensor mean, Tensor inverse, "
      "Tensor gamma, Tensor beta, bool silu) -> (Tensor, Tensor, Tensor)");
  m.def("noise(Tensor seeds, int evaluation, int numel, Tensor? counter=None) -> Tensor");
  m.def(
      "step(Tensor(a!) state, Tensor[] branches, Tensor weights, Tensor table, Tensor evaluation, "
      "Tensor? seeds, Tensor? noise, Tensor(b!)? net_input, Tensor(c!) first_bad, "
      "int reads, int writes, Tensor? variance, Tensor? bound, int extra, int deltas, Tensor? factor, "
      "int factored, Tensor? number=None) -> ()");
  m.def(
      "identity_attention(Tensor q, Tensor k, Tensor v, Tensor context_k, Tensor context_v, "
      "float scale, Tensor? context_mask) -> Tensor");
  m.def("attention_colsum(Tensor q, Tensor k, float scale) -> Tensor");
  m.def("self_attention(Tensor qkv, int heads) -> (Tensor, Tensor)");
  m.def(
      "self_attention_backward(Tensor outward, Tensor qkv, Tensor out, Tensor lse, int heads) "
      "-> Tensor");
}

TORCH_LIBRARY_IMPL(fastguide, CPU, m) {
  m.impl("blur", &fastguide::blur);
  m.impl("gram", &fastguide::gram);
  m.impl("group_norm", &fastguide::group_norm);
  m.impl("group_norm_backward", &fastguide::group_norm_backward);
  m.impl("noise", &fastguide::noise);
  m.impl("step", &fastguide::step);
  m.impl("identity_attention", &fastguide::identity_attention);
  m.impl("attention_colsum", &fastguide::attention_colsum);
  m.impl("self_attention", &fastguide::self_attention);
  m.impl("self_attention_backward", &fastguide::self_attention_backward);
}
