// The schemas of all ops, and the Python module that says what was built.

#include <pybind11/pybind11.h>
#include <torch/library.h>
#include <torch/version.h>

#include "cpu/clones.h"

namespace py = pybind11;

TORCH_LIBRARY(fastguide, m) {
  m.def(
      "blur(Tensor x, Tensor? sigmas, float sigma, int height, int width, int kernel_size) "
      "-> Tensor");
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
      "int factored) -> ()");
  m.def(
      "identity_attention(Tensor q, Tensor k, Tensor v, Tensor context_k, Tensor context_v, "
      "float scale, Tensor? context_mask) -> Tensor");
  m.def("attention_colsum(Tensor q, Tensor k, float scale) -> Tensor");
  m.def("self_attention(Tensor qkv, int heads) -> (Tensor, Tensor)");
  m.def(
      "self_attention_backward(Tensor outward, Tensor qkv, Tensor out, Tensor lse, int heads) "
      "-> Tensor");
}

static py::dict build_info() {
  py::dict info;
  info["torch"] = TORCH_VERSION;
  info["compiler"] = __VERSION__;
  info["highest"] = FASTGUIDE_HIGHEST;
#if defined(FASTGUIDE_CUDA)
  info["cuda"] = FASTGUIDE_CUDA;
#else
  info["cuda"] = py::none();
#endif
#if defined(_OPENMP)
  info["openmp"] = true;
#else
  info["openmp"] = false;
#endif
  return info;
}

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled kernels of fastguide; the ops are registered under torch.ops.fastguide.";
  m.def("build_info", &build_info, "Versions and features that the extension was built with.");
}
