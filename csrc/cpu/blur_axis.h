// The blur of one axis as a banded matrix: the reflected kernel folds back at both ends.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <vector>

namespace fastguide {

// Outputs start ... start + width - 1 of an axis, from inputs first ... first + count - 1.
struct Panel {
  int64_t start, first, count;
  std::vector<float> coefficients;  // [count, width]; zero for outputs past the end
};

// How many taps of the Gaussian lie on each side; see fastguide.ops.blur for `kernel_size`, 0 for
// the rule. At most length - 1, so that every reflection lies inside the axis.
inline int64_t blur_radius(int64_t length, float sigma, int64_t kernel_size) {
  const int64_t limit = length + 1 - length % 2;
  const float reach = std::ceil(6.0f * sigma);
  const int64_t rule = reach < static_cast<float>(limit) ? static_cast<int64_t>(reach) : limit;
  return std::min({kernel_size > 0 ? kernel_size : rule + 1 - rule % 2, limit, 2 * length - 1}) / 2;
}

// The mean of the whole axis for every output.
inline std::vector<Panel> mean_axis(int64_t length, int64_t width) {
  std::vector<Panel> panels;
  for (int64_t start = 0; start < length; start += width) {
    panels.push_back({start, 0, length,
                      std::vector<float>(length * width, 1.0f / static_cast<float>(length))});
  }
  return panels;
}

// blurred[i] = sum over t of tap[|t|] x[reflect(i + t)], in panels of `width` outputs.
inline std::vector<Panel> blur_axis(int64_t length, float sigma, int64_t kernel_size,
                                    int64_t width) {
  if (std::isinf(sigma)) return mean_axis(length, width);
  const int64_t radius = sigma == 0.0f ? 0 : blur_radius(length, sigma, kernel_size);
  std::vector<double> tap(radius + 1);
  double sum = 0.0;
  for (int64_t t = 0; t <= radius; ++t) {
    const double distance = t == 0 ? 0.0 : static_cast<double>(t) / sigma;
    tap[t] = std::exp(-0.5 * distance * distance);
    sum += t == 0 ? tap[t] : 2.0 * tap[t];
  }
  std::vector<Panel> panels;
  for (int64_t start = 0; start < length; start += width) {
    const int64_t end = std::min(start + width, length);
    const int64_t first = std::max<int64_t>(0, start - radius);
    const int64_t count = std::min(length, end + radius) - first;
    std::vector<float> coefficients(count * width);
    for (int64_t i = start; i < end; ++i) {
      for (int64_t t = -radius; t <= radius; ++t) {
        int64_t j = std::abs(i + t);
        if (j >= length) j = 2 * (length - 1) - j;
        coefficients[(j - first) * width + i - start] +=
            static_cast<float>(tap[std::abs(t)] / sum);
      }
    }
    panels.push_back({start, first, count, std::move(coefficients)});
  }
  return panels;
}

}  // namespace fastguide
