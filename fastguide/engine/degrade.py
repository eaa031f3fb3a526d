"""SAG's second input: x with its denoised image blurred where a mask is set, and its noise kept."""

from __future__ import annotations

import math
from statistics import NormalDist

import torch
from torch import Tensor
from torch.nn import functional as F

from fastguide import ops
from fastguide.ops.table import Column
from fastguide.staging.perturbation import Degraded


def degraded_offset(
    settings: Degraded,
    x: Tensor,
    prediction: Tensor,
    table: Tensor,
    alpha: Tensor,
    attention: tuple[Tensor, tuple[int, int]] | None,
    seeds: Tensor | None,
) -> Tensor:
    """What is to be added to `x` fp32 `[B, C, H, W]`: `alpha (M blur(x_0) + (1 - M) x_0 - x_0')`,
    where x_0' is the denoised image and x_0 the same, clamped.

    Args:
        prediction: the source's, `[B, C, H, W]`.
        table: this evaluation's row of `Plan.table`.
        alpha: of the level, a scalar tensor.
        attention: the column sums `[B, N]` of the layer that makes the mask, and its grid.
        seeds: int64 `[B]`, fresh at this evaluation.
    """
    height, width = x.shape[2:]
    sigma, kernel_size = blur_settings(settings, height, width)
    clean = table[Column.OF_X] * x + table[Column.OF_PREDICTION] * prediction.float()
    clamped = clean.clamp(table[Column.LOW], table[Column.HIGH])
    blurred = ops.blur(clamped.flatten(2).transpose(1, 2), sigma, (height, width), kernel_size)
    change = blurred.transpose(1, 2).view_as(x) - clamped
    mask = mask_of(settings, clamped, attention, seeds)
    if mask is not None:
        change = change * mask
    return alpha * (change + clamped - clean)


def blur_settings(settings: Degraded, height: int, width: int) -> tuple[float, int]:
    """Sigma and kernel size in pixels: given, or as published for an image of that size."""
    side = max(height, width)
    sigma = 9.0 if side >= 256 else 3.0 if side >= 128 else 1.0
    kernel_size = 31 if side >= 128 else 9
    return (
        sigma if settings.sigma is None else settings.sigma,
        kernel_size if settings.kernel_size is None else settings.kernel_size,
    )


def mask_of(
    settings: Degraded,
    image: Tensor,
    attention: tuple[Tensor, tuple[int, int]] | None,
    seeds: Tensor | None,
) -> Tensor | None:
    """0 or 1, fp32 `[B, 1, H, W]`, or None for 1 everywhere."""
    batch, _, height, width = image.shape
    if settings.mask == "global":
        return None
    if settings.mask == "attention":
        assert attention is not None
        sums, grid = attention
        coarse = (sums > settings.threshold).float().view(batch, 1, *grid)
        return F.interpolate(coarse, size=(height, width), mode="nearest")
    if settings.mask == "high_frequency":
        response = high_pass(image).abs().mean(1, keepdim=True)
        return (response > settings.threshold * response.mean((2, 3), keepdim=True)).float()
    if settings.mask == "random":
        assert seeds is not None
        limit = math.inf  # the normal's quantile: a share of the pixels lies below it
        if settings.share < 1.0:
            limit = NormalDist().inv_cdf(settings.share) if settings.share else -math.inf
        return (ops.noise(seeds, (1, height, width)) < limit).float()
    side = math.sqrt(settings.share)
    rows, columns = (
        ((torch.arange(n, device=image.device, dtype=torch.float32) + 0.5) / n - 0.5).abs()
        < side / 2
        for n in (height, width)
    )
    return (rows.view(-1, 1) & columns).float().expand(batch, 1, height, width)


def high_pass(image: Tensor) -> Tensor:
    """Frequencies from a quarter of the sampling rate on, by FFT."""
    height, width = image.shape[-2:]
    down = torch.fft.fftfreq(height, device=image.device).view(-1, 1)
    across = torch.fft.rfftfreq(width, device=image.device)
    keep = down.square() + across.square() >= 0.25**2
    return torch.fft.irfft2(torch.fft.rfft2(image) * keep, s=(height, width))
