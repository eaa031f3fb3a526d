// step: guidance combine, denoised image, clamp, solver update, noise and the next network input.
//
// One pass: reads x, each branch and the history slots that the update uses once, writes x, the slots
// that it changes and the next input once. Work is cut into runs of kRun elements whose intermediates
// stay in the L1 cache; every inner loop is a plain vectorised one.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>

#include "../checks.h"
#include "../step_table.h"
#include "branch.h"
#include "clones.h"
#include "dtype.h"
#include "noise.h"
#include "ops.h"

namespace fastguide {
namespace {

constexpr int64_t kRun = 512;

struct Arguments {
  float* state;
  int64_t slots, batch, numel;
  const Branch* branches;
  int64_t branch_count;
  int64_t deltas;         // bit k: branch k is a delta already
  const float* factor;    // or null
  int64_t factored;       // bit k: delta k is multiplied by the factor
  const float* table;
  int64_t table_stride;
  const float* weights;  // [evaluations, batch, x and branches]
  int64_t evaluation_stride, weight_stride;
  const int64_t* evaluations;  // one for all samples, or one for each
  bool each;
  const int64_t* numbers;  // of each sample's noise; null: its evaluation
  const int64_t* seeds;  // or null
  const float* noise;    // or null
  void* input;           // or null
  int64_t copies;
  Type input_type;
  int32_t* first_bad;
  int64_t reads, writes;
  const Branch* variance;  // or null
  const float* bound;      // or null
  int64_t extra;
};

FASTGUIDE_CLONES void first_branch(float* __restrict guided, const float* __restrict positive,
                                   float weight, int64_t count) {
  for (int64_t i = 0; i < count; ++i) guided[i] = weight * positive[i];
}

FASTGUIDE_CLONES void add_delta(float* __restrict guided, const float* __restrict positive,
                                const float* __restrict other, float weight, int64_t count) {
  for (int64_t i = 0; i < count; ++i) guided[i] += weight * (positive[i] - other[i]);
}

FASTGUIDE_CLONES void subtract_from(float* __restrict other, const float* __restrict positive,
                                    int64_t count) {
  for (int64_t i = 0; i < count; ++i) other[i] = positive[i] - other[i];
}

FASTGUIDE_CLONES void add_product(float* __restrict guided, const float* __restrict factor,
                                  const float* __restrict delta, float weight, int64_t count) {
  for (int64_t i = 0; i < count; ++i) guided[i] += weight * (factor[i] * delta[i]);
}

// guided becomes the denoised image; comparisons, not fmin: a NaN must stay one.
FASTGUIDE_CLONES void denoise(float* __restrict guided, const float* __restrict x, float of_x,
                              float of_guided, float low, float high, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    float value = of_x * x[i] + of_guided * guided[i];
    value = value < low ? low : value;
    guided[i] = value > high ? high : value;
  }
}

FASTGUIDE_CLONES void affine(float* __restrict out, const float* __restrict x,
                             const float* __restrict prediction, float of_x, float of_prediction,
                             int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = of_x * x[i] + of_prediction * prediction[i];
}

FASTGUIDE_CLONES void threshold(float* __restrict image, float bound, int64_t count) {
  const float inverse = 1.0f / bound;
  for (int64_t i = 0; i < count; ++i) {
    float value = image[i] < -bound ? -bound : image[i];
    value = value > bound ? bound : value;
    image[i] = inverse * value;
  }
}

FASTGUIDE_CLONES void scale(float* __restrict out, const float* __restrict slot, float coefficient,
                            int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = coefficient * slot[i];
}

FASTGUIDE_CLONES void add_scaled(float* __restrict out, const float* __restrict slot,
                                 float coefficient, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] += coefficient * slot[i];
}

FASTGUIDE_CLONES bool all_finite(const float* __restrict x, int64_t count) {
  int32_t bad = 0;
  for (int64_t i = 0; i < count; ++i) bad |= (as_bits(x[i]) & 0x7F800000u) == 0x7F800000u;
  return !bad;
}

// guided += weight f delta of branch k, which is left in `other` as it was given.
void add_branch(const Arguments& a, int64_t k, int64_t sample, int64_t start, int64_t count,
                float weight, const float* positive, float* guided, float* other) {
  load(other, a.branches[k], sample, start, count);
  const bool given = a.deltas >> k & 1;
  if (!(a.factored >> k & 1)) {
    given ? add_scaled(guided, other, weight, count)
          : add_delta(guided, positive, other, weight, count);
    return;
  }
  const float* factor = a.factor + sample * a.numel + start;
  if (given) {
    add_product(guided, factor, other, weight, count);
    return;
  }
  alignas(64) float delta[kRun];
  std::memcpy(delta, other, count * sizeof(float));
  subtract_from(delta, positive, count);
  add_product(guided, factor, delta, weight, count);
}

void run(const Arguments& a, int64_t sample, int64_t start, int64_t count) {
  alignas(64) float positive[kRun], other[kRun], guided[kRun], drawn[kRun], extra[kRun];
  alignas(64) float out[kMaxSlots][kRun];
  const int64_t slot_size = a.batch * a.numel, at = sample * a.numel + start;
  const float* x = a.state + at;
  const int64_t evaluation = a.evaluations[a.each ? sample : 0];
  const int64_t number = a.numbers != nullptr ? a.numbers[sample] : evaluation;
  const float* row = a.table + evaluation * a.table_stride;
  const float* weight =
      a.weights + evaluation * a.evaluation_stride + sample * a.weight_stride;

  if (a.branch_count > 0) {
    const float of_x = row[kOfX], of_prediction = row[kOfPrediction];
    load(positive, a.branches[0], sample, start, count);
    first_branch(guided, positive, weight[1], count);
    if (a.extra == kNegative) affine(extra, x, positive, of_x, of_prediction, count);
    for (int64_t k = 1; k < a.branch_count; ++k) {
      add_branch(a, k, sample, start, count, weight[1 + k], positive, guided, other);
      if (k == 1 && a.extra == kNegative) {
        if (a.deltas >> 1 & 1) subtract_from(other, positive, count);
        affine(extra, x, other, of_x, of_prediction, count);
      }
    }
    const float share = weight[0] * of_x;
    if (a.extra == kUnclamped) affine(extra, x, guided, share, of_prediction, count);
    denoise(guided, x, share, of_prediction, row[kLow], row[kHigh], count);
    if (a.bound != nullptr) threshold(guided, a.bound[sample], count);
  }
  const float* noise = nullptr;
  if (a.noise != nullptr) {
    noise = a.noise + at;
  } else if (a.seeds != nullptr) {
    fill_normals(drawn, static_cast<uint64_t>(a.seeds[sample]),
                 static_cast<uint32_t>(number),
                 static_cast<uint64_t>(start / 4), count);
    noise = drawn;
  }
  if (a.variance != nullptr && noise != nullptr) {
    load(other, *a.variance, sample, start, count);
    for (int64_t i = 0; i < count; ++i) drawn[i] = noise[i] * std::exp(row[kSpread] * other[i]);
    noise = drawn;
  }
  const bool has_extra = a.extra != kNone && a.branch_count > 0;

  // every output reads the old slots, so all are formed before any is stored
  for (int64_t r = 0; r < a.slots; ++r) {
    if (!(a.writes >> r & 1)) continue;
    const float* c = row + kMatrix + r * (a.slots + 3);
    if (a.branch_count > 0) {
      scale(out[r], guided, c[a.slots], count);
    } else {
      std::fill_n(out[r], count, 0.0f);
    }
    for (int64_t j = 0; j < a.slots; ++j) {
      if (a.reads >> j & 1) add_scaled(out[r], a.state + j * slot_size + at, c[j], count);
    }
    if (noise != nullptr) add_scaled(out[r], noise, c[a.slots + 1], count);
    if (has_extra) add_scaled(out[r], extra, c[a.slots + 2], count);
  }
  for (int64_t r = 0; r < a.slots; ++r) {
    if (a.writes >> r & 1) std::memcpy(a.state + r * slot_size + at, out[r], count * sizeof(float));
  }
  if (!all_finite(x, count)) {  // rare: samples share no entry, but the runs of one sample do
    int32_t seen = __atomic_load_n(&a.first_bad[sample], __ATOMIC_RELAXED);
    const int32_t now = static_cast<int32_t>(number);
    while (now < seen && !__atomic_compare_exchange_n(&a.first_bad[sample], &seen, now, false,
                                                      __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
  }
  for (int64_t copy = 0; copy < a.copies; ++copy) {
    store_run(a.input, copy * slot_size + at, x, row[kInputScale], count, a.input_type);
  }
}

}  // namespace

void step(at::Tensor& state, at::TensorList branches, const at::Tensor& weights,
          const at::Tensor& table, const at::Tensor& evaluation,
          const std::optional<at::Tensor>& seeds, const std::optional<at::Tensor>& noise,
          const std::optional<at::Tensor>& net_input, at::Tensor& first_bad, int64_t reads,
          int64_t writes, const std::optional<at::Tensor>& variance,
          const std::optional<at::Tensor>& bound, int64_t extra, int64_t deltas,
          const std::optional<at::Tensor>& factor, int64_t factored,
          const std::optional<at::Tensor>& number) {
  check_step(state, branches, weights, table, evaluation, seeds, noise, net_input, first_bad,
             variance, bound, extra, factor, factored, number);
  const int64_t* evaluations = evaluation.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < evaluation.numel(); ++i) {
    TORCH_CHECK(evaluations[i] >= 0 && evaluations[i] < table.size(0), "step: evaluation is ",
                evaluations[i], ", but table has ", table.size(0), " rows");
  }
  if (state.numel() == 0) return;
  const int64_t slots = state.size(0), batch = state.size(1);
  const int64_t numel = state.size(2) * state.size(3);
  at::SmallVector<Branch, 8> views;
  for (const at::Tensor& branch : branches) views.push_back(Branch(branch, "step"));
  const Branch variance_view = variance ? Branch(*variance, "step") : Branch{};
  Arguments a{};
  a.state = state.mutable_data_ptr<float>();
  a.slots = slots, a.batch = batch, a.numel = numel;
  a.branches = views.data(), a.branch_count = static_cast<int64_t>(views.size());
  a.deltas = deltas, a.factored = factored;
  a.factor = factor ? factor->const_data_ptr<float>() : nullptr;
  a.table = table.const_data_ptr<float>(), a.table_stride = table.stride(0);
  a.weights = weights.const_data_ptr<float>(), a.evaluation_stride = weights.stride(0);
  a.weight_stride = weights.size(1) == 1 ? 0 : weights.stride(1);
  a.evaluations = evaluations, a.each = evaluation.dim() == 1;
  a.numbers = number ? number->const_data_ptr<int64_t>() : nullptr;
  a.seeds = seeds ? seeds->const_data_ptr<int64_t>() : nullptr;
  a.noise = noise ? noise->const_data_ptr<float>() : nullptr;
  a.input = net_input ? net_input->mutable_data_ptr() : nullptr;
  a.copies = net_input ? net_input->size(0) / batch : 0;
  a.input_type = net_input ? type_of(*net_input, "step") : Type::kFloat;
  a.first_bad = first_bad.mutable_data_ptr<int32_t>();
  a.reads = reads, a.writes = writes;
  a.variance = variance ? &variance_view : nullptr;
  a.bound = bound ? bound->const_data_ptr<float>() : nullptr;
  a.extra = extra;

  const int64_t runs = (numel + kRun - 1) / kRun;
  constexpr int64_t kGrain = 8;  // below some 4,000 elements a second thread costs more than it saves
  at::parallel_for(0, batch * runs, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t start = i % runs * kRun;
      run(a, i / runs, start, std::min(kRun, numel - start));
    }
  });
}

}  // namespace fastguide
