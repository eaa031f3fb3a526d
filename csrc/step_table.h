// The columns of one row of the coefficient table; fastguide/engine/plan.py fills them.
#pragma once

#include <cstdint>

namespace fastguide {

enum Column : int64_t {
  kOfX = 0,           // denoised = kOfX x + kOfPrediction guided
  kOfPrediction = 1,
  kLow = 2,           // clamp of the denoised image; -inf and inf where there is none
  kHigh = 3,
  kInputScale = 4,    // the next network input is kInputScale x
  kSpread = 5,        // noise is scaled by exp(kSpread variance) where the network predicts one
  kMatrix = 6,        // [slots, slots + 3]: slot r = sum over (slots, denoised, noise, extra)
};

enum Extra : int64_t {  // which image is the last source
  kNone = 0,
  kUnclamped = 1,  // the denoised image before it was clamped
  kNegative = 2,   // that of the first branch beside the positive one, not clamped
};

constexpr int64_t kMaxSlots = 8;

}  // namespace fastguide
