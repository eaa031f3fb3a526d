"""What a learned variance is trained on: the variational bound beside the regression, L_hybrid of
Nichol and Dhariwal 2021.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from fastguide.process import VP, Prediction
from fastguide.solvers.ddim import transition_std


def bound_loss(
    output: Tensor, variance: Tensor, target: Tensor, t: Tensor, process: VP, prediction: Prediction
) -> Tensor:
    """`T / 1000 KL(q(x_(t-1) | x_t, x_0), p(x_(t-1) | x_t))` in bits per element, `[B]`.

    p has the mean of `output`, through which no gradient flows, and the variance
    `exp(f log beta + (1 - f) log beta_tilde)`, f = (variance + 1) / 2 (eq. 15): the one that
    `ddpm(variance="learned")` draws with. Where t = 0 it is 0: the last step draws no noise.

    T / 1000 is lambda L_vlb (eq. 16) with lambda = 0.001 and t drawn uniformly.

    Args:
        output, variance, target: `[B, C, H, W]`.
        t: whole timesteps `[B]`.
    """
    rows = _table(process, prediction).to(t.device)[t.long()]
    columns = rows.view(*rows.shape, *[1] * (output.ndim - 1)).unbind(1)
    small, large, gain = (column.float() for column in columns)
    log_variance = torch.lerp(small, large, (variance + 1) / 2)
    difference = gain * (target - output.detach())  # between the means of q and p
    kl = 0.5 * (
        log_variance
        - small
        + torch.expm1(small - log_variance)
        + difference.square() * torch.exp(-log_variance)
    )
    return process.timesteps / 1000 / math.log(2.0) * kl.flatten(1).mean(1)


@lru_cache(maxsize=8)
def _table(process: VP, prediction: Prediction) -> Tensor:
    """For each timestep log beta_tilde, log beta and by how much the mean of x_(t-1) follows the
    prediction; fp64 `[T, 3]`.
    """
    levels = [process.level(float(t)) for t in range(process.timesteps)]
    rows = [(0.0, 0.0, 0.0)]  # no loss and no gradient
    for to, now in pairwise(levels):
        large = transition_std(now, to)
        small = to.sigma / now.sigma * large
        of_image = to.alpha * (large / now.sigma) ** 2  # x_0 in the mean of q (DDPM, eq. 7)
        of_output = of_image * prediction.denoised(now)[1]
        rows.append((2 * math.log(small), 2 * math.log(large), of_output))
    return torch.tensor(rows, dtype=torch.float64)
