"""Noised images, and the target that each prediction type regresses on."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastguide.nets.diffuse import alpha_sigma, net_input, prediction_of
from fastguide.process import EDM, VP, ContinuousVP, Noising, Prediction


def noised(
    clean: Tensor,
    process: Noising,
    prediction: Prediction,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """(network input, network time [B], target) for one batch of `clean` images [B, C, H, W].

    Times: uniform over VP's timesteps, and over continuous ones; log-normal(-1.2, 1.2) sigmas for
    EDM (Karras et al. 2022); logit-normal(0, 1) for flow (Esser et al. 2024).
    """
    batch = clean.shape[0]
    if isinstance(process, VP):
        t = torch.randint(process.timesteps, (batch,), generator=generator).float()
    elif isinstance(process, ContinuousVP):
        t = process.t_min + (process.t_max - process.t_min) * torch.rand(batch, generator=generator)
    elif isinstance(process, EDM):
        t = (torch.randn(batch, generator=generator) * 1.2 - 1.2).exp()
    else:
        t = torch.randn(batch, generator=generator).sigmoid()
    x, t, alpha, sigma = diffused(clean, t, process, generator)
    target = prediction_of(prediction, clean, x, alpha, sigma)
    return *net_input(prediction, x, t, alpha, sigma), target


def noised_alike(
    clean: Tensor,
    process: Noising,
    prediction: Prediction,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """(network input, network time [B]) at all levels alike, for a network that judges `clean`.

    Times: uniform over VP's timesteps and over flow's times; log-uniform sigmas for EDM. A sampler
    asks a judge at each of them, and a judge that never saw a level leads anywhere.
    """
    batch = clean.shape[0]
    if isinstance(process, VP):
        t = torch.randint(process.timesteps, (batch,), generator=generator).float()
    else:
        t = torch.rand(batch, generator=generator).clamp(1e-4, 1 - 1e-4)
    if isinstance(process, ContinuousVP):
        t = process.t_min + (process.t_max - process.t_min) * t
    if isinstance(process, EDM):
        t = process.sigma_min * (process.sigma_max / process.sigma_min) ** t
    return net_input(prediction, *diffused(clean, t, process, generator))


def diffused(
    clean: Tensor, t: Tensor, process: Noising, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(x, t, alpha, sigma) of `clean` noised to the times `t` [B]; the last two are columns."""
    column = t.view(-1, *[1] * (clean.ndim - 1))
    alpha, sigma = (value.float() for value in alpha_sigma(process, column))
    return alpha * clean + sigma * torch.randn(clean.shape, generator=generator), t, alpha, sigma


def cosine_rate(step: int, steps: int, warmup: int) -> float:
    """Learning-rate factor: linear warm-up, then half a cosine to 0 at `steps`."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))
