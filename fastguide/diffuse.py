"""Noise levels as tensors, one per sample: for training and for exact denoisers."""

from __future__ import annotations

import torch
from torch import Tensor

from fastguide.process import EDM, VP, Flow, Prediction


def alpha_sigma(process: VP | EDM | Flow, t: Tensor) -> tuple[Tensor, Tensor]:
    """(alpha, sigma) fp64, shaped like the times `t`, which may be fractional."""
    t = t.double()
    if isinstance(process, EDM):
        return torch.ones_like(t), t
    if isinstance(process, Flow):
        return 1 - t, t
    table = torch.tensor(process.log_ratios, dtype=torch.float64, device=t.device)
    low = t.long().clamp(0, process.timesteps - 2)
    return from_ratio(process, torch.lerp(table[low], table[low + 1], t - low).exp())


def from_ratio(process: VP | EDM | Flow, ratio: Tensor) -> tuple[Tensor, Tensor]:
    """(alpha, sigma), shaped like `ratio` = sigma / alpha."""
    if isinstance(process, EDM):
        return torch.ones_like(ratio), ratio
    alpha = 1 / (1 + ratio) if isinstance(process, Flow) else (1 + ratio.square()).rsqrt()
    return alpha, alpha * ratio


def prediction_of(
    prediction: Prediction, clean: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor
) -> Tensor:
    """What a network that knows the denoised image `clean` of `x` returns; all broadcast.

    The inverse of `Prediction.denoised`. For `x` of a true pair (clean, noise) it is the training
    target.
    """
    if prediction.name == "x0":
        return clean
    if prediction.name == "edm":
        ratio, data = sigma / alpha, prediction.sigma_data
        norm = (ratio.square() + data**2).sqrt()
        return (clean - data**2 / norm.square() * x / alpha) / (ratio * data / norm)
    noise = (x - alpha * clean) / sigma
    if prediction.name == "eps":
        return noise
    return alpha * noise - sigma * clean if prediction.name == "v" else noise - clean


def net_input(
    prediction: Prediction, x: Tensor, t: Tensor, alpha: Tensor, sigma: Tensor
) -> tuple[Tensor, Tensor]:
    """(network input, network time): `c_in x`, and log(sigma) / 4 instead of `t` for edm."""
    if prediction.name != "edm":
        return x, t
    ratio = sigma / alpha
    scaled = x / (alpha * (ratio.square() + prediction.sigma_data**2).sqrt())
    return scaled, 0.25 * ratio.flatten().log()
