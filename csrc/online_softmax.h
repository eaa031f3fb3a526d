// A softmax that grows: the largest score so far and the sum of exponentials relative to it.
//
// Scores are in units of log2 (already multiplied by log2(e)). An image token of identity attention
// starts with its own score alone, and context keys are added block by block (Milakov and Gimelshein
// 2018): raise() to the block's largest score, multiply what was accumulated by the factor that it
// returns, then add weight(score) for each key. A key that is masked has the score -inf.
#pragma once

#include <cmath>

#include "inline.h"

namespace fastguide {

constexpr float kLog2E = 1.44269504f;

struct OnlineSoftmax {
  float max, sum;

  // Makes `score` the largest if it is; returns the factor for what was accumulated before.
  FASTGUIDE_INLINE float raise(float score) {
    const float before = max;
    max = score > before ? score : before;
    const float factor = exp2f(before - max);
    sum *= factor;
    return factor;
  }

  // exp of a score relative to the largest.
  FASTGUIDE_INLINE float weight(float score) const { return exp2f(score - max); }
};

// The softmax of one score: what is accumulated starts as the value of that key, times 1.
FASTGUIDE_INLINE OnlineSoftmax only(float score) { return {score, 1.0f}; }

}  // namespace fastguide
