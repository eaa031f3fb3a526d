"""Noised images and the target that each prediction type regresses on."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastguide.process import EDM, VP, Flow, Prediction


def noised(
    clean: Tensor, process: VP | EDM | Flow, prediction: Prediction, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """(network input, network time [B], target) for one batch of `clean` images [B, C, H, W].

    Times: uniform over VP's timesteps; log-normal(-1.2, 1.2) sigmas for EDM (Karras et al. 2022);
    logit-normal(0, 1) for flow (Esser et al. 2024).
    """
    batch = clean.shape[0]
    if isinstance(process, VP):
        t = torch.randint(process.timesteps, (batch,), generator=generator)
        ratio = torch.tensor(process.log_ratios, dtype=torch.float64)[t].exp()
        alpha = (1 + ratio.square()).rsqrt()
        t, alpha, sigma = t.float(), alpha.float(), (alpha * ratio).float()
    elif isinstance(process, EDM):
        t = (torch.randn(batch, generator=generator) * 1.2 - 1.2).exp()
        alpha, sigma = torch.ones(batch), t
    else:
        t = torch.randn(batch, generator=generator).sigmoid()
        alpha, sigma = 1 - t, t
    noise = torch.randn(clean.shape, generator=generator)
    alpha, sigma = (v.view(-1, *[1] * (clean.ndim - 1)) for v in (alpha, sigma))
    x = alpha * clean + sigma * noise
    if prediction.name == "edm":
        ratio, data = sigma / alpha, prediction.sigma_data
        norm = (ratio.square() + data**2).sqrt()
        target = (clean - data**2 / norm.square() * x / alpha) / (ratio * data / norm)
        return x / (alpha * norm), 0.25 * ratio.flatten().log(), target
    target = {
        "eps": noise,
        "x0": clean,
        "v": alpha * noise - sigma * clean,
        "flow": noise - clean,
    }[prediction.name]
    return x, t, target


def cosine_rate(step: int, steps: int, warmup: int) -> float:
    """Learning-rate factor: linear warm-up, then half a cosine to 0 at `steps`."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))
