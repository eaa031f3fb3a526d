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
  kMatrix = 5,        // [slots, slots + 2]: output slot r = sum over (slots, denoised, noise)
};

constexpr int64_t kMaxSlots = 8;

}  // namespace fastguide
