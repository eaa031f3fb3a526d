"""The exact denoiser of a mixture of Gaussians: a network whose every answer is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastguide.nets.diffuse import alpha_sigma, from_ratio, net_input, prediction_of
from fastguide.process import Noising, Prediction


class GaussianMixture:
    """`net(x, t, cond)` for data drawn from `sum_k weight_k N(mean_k, std_k^2 I)`, computed in
    fp64.

    Args:
        means: fp64 `[K, *shape]`.
        stds, weights: K numbers each.
        labels: the class of each component; `cond` int64 `[B]` then selects the components of that
            class, and the value `max(labels) + 1` (the null class) all of them.
        heads: 2 adds a second prediction, under the null condition, or under the second one of
            `cond` where that is a pair.
    """

    def __init__(
        self,
        means: Tensor,
        stds: Sequence[float],
        weights: Sequence[float],
        process: Noising,
        prediction: Prediction,
        labels: Sequence[int] = (),
        heads: int = 1,
    ) -> None:
        count = means.shape[0]
        for name, values in (("stds", stds), ("weights", weights), ("labels", labels or stds)):
            if len(values) != count:
                raise ValueError(f"{name} has {len(values)} entries for {count} means")
        self.shape = tuple(means.shape[1:])
        self.means = means.double().flatten(1)
        self.variances = torch.tensor(stds, dtype=torch.float64).square()
        self.log_weights = torch.tensor(weights, dtype=torch.float64).log()
        self.process, self.prediction, self.heads = process, prediction, heads
        self.labels = torch.tensor(labels, dtype=torch.int64)
        self.null = int(max(labels)) + 1 if labels else None

    def __call__(self, x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        t = t.double().view(-1, 1)
        if self.prediction.log_time is not None:
            alpha, sigma = from_ratio(self.process, (t / self.prediction.log_time).exp())
        else:
            alpha, sigma = alpha_sigma(self.process, t)
        ones = torch.ones_like(alpha)
        flat = x.double().flatten(1) / net_input(self.prediction, ones, t, alpha, sigma)[0]
        conds = cond if isinstance(cond, (tuple, list)) else (cond, None)
        outputs = []
        for head in range(self.heads):
            clean = self.denoised(flat, alpha, sigma, conds[head])
            outputs.append(prediction_of(self.prediction, clean, flat, alpha, sigma))
        shaped = [out.view(-1, *self.shape) for out in outputs]
        return torch.cat(shaped, dim=1).to(x.dtype)

    def denoised(
        self, x: Tensor, alpha: Tensor, sigma: Tensor, cond: Tensor | None = None
    ) -> Tensor:
        """E[x_0 given x] for `x` fp64 `[B, D]`, `alpha` and `sigma` `[B, 1]`."""
        total = alpha.square() * self.variances + sigma.square()  # [B, K]
        offset = x.unsqueeze(1) - alpha.unsqueeze(2) * self.means  # [B, K, D]
        logits = self.log_weights - 0.5 * (
            x.shape[1] * total.log() + offset.square().sum(2) / total
        )
        if cond is not None and self.null is not None:
            other = (self.labels != cond.unsqueeze(1)) & (cond.unsqueeze(1) != self.null)
            logits = logits.masked_fill(other, -torch.inf)
        gain = alpha * self.variances / total
        each = self.means + gain.unsqueeze(2) * offset
        return (logits.softmax(1).unsqueeze(2) * each).sum(1)
