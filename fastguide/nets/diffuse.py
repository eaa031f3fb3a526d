"""Noise levels as tensors, one per sample: for training and for exact denoisers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastguide.process import EDM, ContinuousVP, Flow, Noising, Prediction


def alpha_sigma(process: Noising, t: Tensor) -> tuple[Tensor, Tensor]:
    """(alpha, sigma) fp64, shaped like the times `t`, which may be fractional."""
    t = t.double()
    if isinstance(process, EDM):
        return torch.ones_like(t), t
    if isinstance(process, Flow):
        return 1 - t, t
    if isinstance(process, ContinuousVP):
        s = t / process.scale
        log_alpha = (
            -s.square() * (process.beta_max - process.beta_min) / 4 - s * process.beta_min / 2
        )
        square = -torch.expm1(2 * log_alpha)
        return log_alpha.exp(), square if process.sub else square.sqrt()
    table = torch.tensor(process.log_ratios, dtype=torch.float64, device=t.device)
    low = t.long().clamp(0, process.timesteps - 2)
    if not math.isinf(process.log_ratios[-1]):
        return from_ratio(process, torch.lerp(table[low], table[low + 1], t - low).exp())
    table[-1] = table[-2]  # then the line below gives alpha at timesteps - 2 in the last interval
    alpha, sigma = from_ratio(process, torch.lerp(table[low], table[low + 1], t - low).exp())
    last = low == process.timesteps - 2
    alpha = torch.where(last, alpha * (1 - (t - low)), alpha)
    return alpha, torch.where(last, ((1 - alpha) * (1 + alpha)).sqrt(), sigma)


def from_ratio(process: Noising, ratio: Tensor) -> tuple[Tensor, Tensor]:
    """(alpha, sigma), shaped like `ratio` = sigma / alpha; inf is pure noise, of VP and flow."""
    if isinstance(process, EDM):
        return torch.ones_like(ratio), ratio
    if isinstance(process, ContinuousVP) and process.sub:
        return (-(ratio / 2).asinh()).exp(), ratio * (-(ratio / 2).asinh()).exp()
    alpha = 1 / (1 + ratio) if isinstance(process, Flow) else (1 + ratio.square()).rsqrt()
    return alpha, torch.where(ratio.isinf(), 1.0, alpha * ratio)


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
    if prediction.name == "consistency":
        ratio, data = sigma / alpha, prediction.sigma_data
        above = ratio - prediction.sigma_min
        skip = data**2 / (above.square() + data**2)
        return (clean - skip * x / alpha) * (ratio.square() + data**2).sqrt() / (above * data)
    noise = (x - alpha * clean) / sigma
    if prediction.name == "eps":
        return noise
    return alpha * noise - sigma * clean if prediction.name == "v" else noise - clean


def net_input(
    prediction: Prediction, x: Tensor, t: Tensor, alpha: Tensor, sigma: Tensor
) -> tuple[Tensor, Tensor]:
    """(network input, network time) as `Prediction.input_scale` and `.net_time` say."""
    if prediction.log_time is None:
        return x, t
    ratio = sigma / alpha
    scaled = x / (alpha * (ratio.square() + prediction.sigma_data**2).sqrt())
    return scaled, prediction.log_time * ratio.flatten().log()
