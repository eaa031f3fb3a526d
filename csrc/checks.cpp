// What protects memory when an op is called raw.

#include "checks.h"

#include "step_table.h"

namespace fastguide {
namespace {

// More elements than any memory holds; expanded tensors have as many. Below it the kernels' products
// of sizes, rounded up to whole blocks, do not overflow.
constexpr int64_t kMost = int64_t{1} << 48;
constexpr int64_t kMaxGramBranches = 8;
constexpr size_t kMaxStepBranches = 62;  // a mask has a bit for each

// The checks of one call: each names the argument that fails it.
struct Check {
  const char* op;
  at::Device device;

  void that(bool fits, const char* name) const {
    TORCH_CHECK(fits, op, ": ", name, " does not fit; fastguide.ops says what it should be");
  }

  // Any strides.
  void view(const at::Tensor& x, at::ScalarType type, at::IntArrayRef sizes,
            const char* name) const {
    that(x.scalar_type() == type && x.sizes() == sizes && x.device() == device &&
             x.numel() <= kMost,
         name);
  }

  void dense(const at::Tensor& x, at::ScalarType type, at::IntArrayRef sizes,
             const char* name) const {
    that(x.is_contiguous(), name);
    view(x, type, sizes, name);
  }

  // What kernels read as fp32, bf16 or fp16; any strides.
  void floats(const at::Tensor& x, at::IntArrayRef sizes, const char* name) const {
    const at::ScalarType type = x.scalar_type();
    that(type == at::kFloat || type == at::kBFloat16 || type == at::kHalf, name);
    view(x, type, sizes, name);
  }

  // `[rows, C]` with channels one after the other.
  void rows(const at::Tensor& x, const at::Tensor& tokens, const char* name) const {
    view(x, at::kFloat, {tokens.size(0), tokens.size(2)}, name);
    that(x.size(1) <= 1 || x.stride(1) == 1, name);
  }

  // `[R, heads, tokens, D]`, the numbers of a token one after the other.
  void heads(const at::Tensor& x, at::ScalarType type, at::IntArrayRef sizes,
             const char* name) const {
    that(x.scalar_type() == type, name);
    floats(x, sizes, name);
    that(x.size(3) == 1 || x.stride(3) == 1, name);
  }
};

void check_factor(const Check& check, const std::optional<at::Tensor>& factor, int64_t factored,
                  at::IntArrayRef sizes) {
  check.that(factor.has_value() || factored == 0, "factor");
  if (factor) check.dense(*factor, at::kFloat, sizes, "factor");
}

}  // namespace

void check_step(const at::Tensor& state, at::TensorList branches, const at::Tensor& weights,
                const at::Tensor& table, const at::Tensor& evaluation,
                const std::optional<at::Tensor>& seeds, const std::optional<at::Tensor>& noise,
                const std::optional<at::Tensor>& net_input, const at::Tensor& first_bad,
                const std::optional<at::Tensor>& variance, const std::optional<at::Tensor>& bound,
                int64_t extra, const std::optional<at::Tensor>& factor, int64_t factored,
                const std::optional<at::Tensor>& number) {
  const Check check{"step", state.device()};
  check.that(state.dim() == 4 && state.size(0) >= 1 && state.size(0) <= kMaxSlots, "state");
  check.dense(state, at::kFloat, state.sizes(), "state");
  const int64_t slots = state.size(0), batch = state.size(1);
  const at::IntArrayRef sample = state.sizes().slice(1);
  check.that(branches.size() <= kMaxStepBranches, "branches");
  for (const at::Tensor& branch : branches) check.floats(branch, sample, "branches");
  check.that(table.dim() == 2 && table.size(1) >= kMatrix + slots * (slots + 3), "table");
  check.dense(table, at::kFloat, table.sizes(), "table");
  check.that(weights.dim() == 3 && weights.size(0) == table.size(0) &&
                 (weights.size(1) == 1 || weights.size(1) == batch) &&
                 weights.size(2) > static_cast<int64_t>(branches.size()),
             "weights");
  check.dense(weights, at::kFloat, weights.sizes(), "weights");
  if (evaluation.dim() == 0) {
    check.dense(evaluation, at::kLong, {}, "evaluation");
  } else {
    check.dense(evaluation, at::kLong, {batch}, "evaluation");
  }
  if (number) {
    check.that(evaluation.dim() == 1, "number");
    check.dense(*number, at::kLong, {batch}, "number");
  }
  check.dense(first_bad, at::kInt, {batch}, "first_bad");
  if (seeds) check.dense(*seeds, at::kLong, {batch}, "seeds");
  if (noise) check.dense(*noise, at::kFloat, sample, "noise");
  if (net_input) {
    check.that(net_input->dim() == 3 && batch > 0 && net_input->size(0) % batch == 0 &&
                   net_input->is_contiguous(),
               "net_input");
    check.floats(*net_input, {net_input->size(0), sample[1], sample[2]}, "net_input");
  }
  if (variance) check.floats(*variance, sample, "variance");
  if (bound) check.dense(*bound, at::kFloat, {batch}, "bound");
  check.that(extra >= kNone && extra <= kNegative, "extra");
  check_factor(check, factor, factored, sample);
}

void check_gram(const at::Tensor& x, at::TensorList branches, const at::Tensor& base,
                const std::optional<at::Tensor>& factor, int64_t factored) {
  const Check check{"gram", x.device()};
  check.that(x.dim() == 3, "x");
  check.dense(x, at::kFloat, x.sizes(), "x");
  check.that(!branches.empty() && branches.size() <= kMaxGramBranches, "branches");
  for (const at::Tensor& branch : branches) check.floats(branch, x.sizes(), "branches");
  if (base.dim() == 1) {
    check.dense(base, at::kFloat, {2}, "base");
  } else {
    check.dense(base, at::kFloat, {x.size(0), 2}, "base");
  }
  check_factor(check, factor, factored, x.sizes());
}

void check_blur(const at::Tensor& x, const std::optional<at::Tensor>& sigmas, int64_t height,
                int64_t width, int64_t kernel_size) {
  const Check check{"blur", x.device()};
  check.that(x.dim() == 3, "x");
  check.floats(x, x.sizes(), "x");
  const int64_t tokens = x.size(1);
  check.that(height >= 1 && width >= 1 && tokens % height == 0 && tokens / height == width,
             "height and width");
  check.that(kernel_size >= 0, "kernel_size");
  if (sigmas) check.dense(*sigmas, at::kFloat, {x.size(0)}, "sigmas");
}

void check_noise(const at::Tensor& seeds, int64_t numel,
                 const std::optional<at::Tensor>& counter) {
  const Check check{"noise", seeds.device()};
  check.dense(seeds, at::kLong, seeds.sizes(), "seeds");
  check.that(numel >= 0 && numel <= kMost, "numel");
  if (!counter) return;
  check.that(counter->numel() == 1 || counter->numel() == seeds.numel(), "counter");
  check.dense(*counter, at::kLong, counter->sizes(), "counter");
}

void check_group_norm(const at::Tensor& tokens, const at::Tensor& gamma, const at::Tensor& beta,
                      int64_t groups) {
  const Check check{"group_norm", tokens.device()};
  check.that(tokens.dim() == 3 && tokens.is_contiguous() && tokens.size(1) >= 1, "tokens");
  check.floats(tokens, tokens.sizes(), "tokens");
  check.that(groups >= 1 && groups <= tokens.size(2) && tokens.size(2) % groups == 0, "groups");
  check.rows(gamma, tokens, "gamma");
  check.rows(beta, tokens, "beta");
}

void check_group_norm_backward(const at::Tensor& outward, const at::Tensor& tokens,
                               const at::Tensor& mean, const at::Tensor& inverse,
                               const at::Tensor& gamma, const at::Tensor& beta) {
  check_group_norm(tokens, gamma, beta, mean.dim() == 2 ? mean.size(1) : 0);
  const Check check{"group_norm_backward", tokens.device()};
  check.dense(outward, tokens.scalar_type(), tokens.sizes(), "outward");
  check.dense(mean, at::kFloat, {tokens.size(0), mean.size(1)}, "mean");
  check.dense(inverse, at::kFloat, mean.sizes(), "inverse");
}

void check_identity_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                              const at::Tensor& context_k, const at::Tensor& context_v,
                              const std::optional<at::Tensor>& context_mask) {
  const Check check{"identity_attention", q.device()};
  const at::ScalarType type = q.scalar_type();
  check.that(q.dim() == 4 && q.size(3) >= 1, "q");
  check.heads(q, type, q.sizes(), "q");
  check.heads(k, type, q.sizes(), "k");
  check.heads(v, type, q.sizes(), "v");
  check.that(context_k.dim() == 4, "context_k");
  const int64_t rows = q.size(0), keys = context_k.size(2);
  check.heads(context_k, type, {rows, q.size(1), keys, q.size(3)}, "context_k");
  check.heads(context_v, type, context_k.sizes(), "context_v");
  if (context_mask) check.view(*context_mask, at::kBool, {rows, keys}, "context_mask");
}

void check_attention_colsum(const at::Tensor& q, const at::Tensor& k) {
  const Check check{"attention_colsum", q.device()};
  check.that(q.dim() == 4 && q.size(3) >= 1, "q");
  check.heads(q, q.scalar_type(), q.sizes(), "q");
  check.that(k.dim() == 4, "k");
  check.heads(k, q.scalar_type(), {q.size(0), q.size(1), k.size(2), q.size(3)}, "k");
}

void check_self_attention(const at::Tensor& qkv, int64_t heads) {
  const Check check{"self_attention", qkv.device()};
  check.that(qkv.dim() == 3 && qkv.is_contiguous() && qkv.size(1) >= 1 && qkv.size(2) >= 1 &&
                 qkv.size(2) % 3 == 0,
             "qkv");
  check.floats(qkv, qkv.sizes(), "qkv");
  check.that(heads >= 1 && heads <= qkv.size(2) && qkv.size(2) / 3 % heads == 0, "heads");
}

void check_self_attention_backward(const at::Tensor& outward, const at::Tensor& qkv,
                                   const at::Tensor& out, const at::Tensor& lse, int64_t heads) {
  check_self_attention(qkv, heads);
  const Check check{"self_attention_backward", qkv.device()};
  const int64_t rows = qkv.size(0), tokens = qkv.size(1), width = qkv.size(2) / 3;
  check.dense(outward, qkv.scalar_type(), {rows, tokens, width}, "outward");
  check.dense(out, qkv.scalar_type(), {rows, tokens, width}, "out");
  check.dense(lse, at::kFloat, {rows, heads, tokens}, "lse");
}

}  // namespace fastguide
