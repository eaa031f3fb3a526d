"""Gaussian blur along a grid, as published for SEG and SAG: explicit padding, one tap at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Sigma = float | Sequence[float]  # of all axes, or of each


def blur(
    x: Tensor, sigma: Sigma | Tensor, grid: Sequence[int], kernel_size: int | None = None
) -> Tensor:
    """`x` `[R, N, C]` blurred along its grid, of one to three axes, in the dtype of `x`.

    Along each axis `blurred[i] = sum_t w(t) x[reflect(i + t)]` over `|t| <= kernel_size // 2`, with
    `w(t) = exp(-t^2 / 2 sigma^2)` normalised to sum 1. `sigma` is a float, one for each
    axis, or a tensor `[R]`; 0 leaves an axis as it is, and infinity makes it its mean.
    """
    sigmas = sigma.tolist() if isinstance(sigma, Tensor) else [sigma] * x.shape[0]
    rows = [blur_row(row, value, grid, kernel_size) for row, value in zip(x, sigmas, strict=True)]
    return torch.stack(rows)


def blur_row(x: Tensor, sigma: Sigma, grid: Sequence[int], kernel_size: int | None) -> Tensor:
    """One row `[N, C]` with its own sigma."""
    sigmas = [sigma] * len(grid) if isinstance(sigma, (int, float)) else sigma
    image = x.reshape(*grid, x.shape[1])
    for axis, (length, own) in enumerate(zip(grid, sigmas, strict=True)):
        if own == math.inf:
            image = image.mean(axis, keepdim=True).expand_as(image)
        elif own != 0.0:
            weights = taps(own, length, kernel_size).to(image)
            image = blur_axis(image.movedim(axis, 0), weights).movedim(0, axis)
    return image.reshape(x.shape)


def taps(sigma: float, length: int, kernel_size: int | None = None) -> Tensor:
    """The kernel fp64 along an axis of `length`; SEG's number of taps unless `kernel_size` says."""
    # 6 sigma in fp32, as sigma is: whether it is a whole number should not depend on where it runs
    reach = math.ceil(
        min((6.0 * torch.tensor(sigma, dtype=torch.float32, device="cpu")).item(), length + 1)
    )
    size = kernel_size or reach + 1 - reach % 2
    size = min(size, length - (length % 2 - 1))
    t = torch.arange(size, dtype=torch.float64) - size // 2
    weights = torch.exp(-0.5 * (t / sigma) ** 2)
    return weights / weights.sum()


def blur_axis(x: Tensor, weights: Tensor) -> Tensor:
    """Reflect padding along dimension 0 of `x` `[n, ...]`, then a sum over the taps."""
    length, half = x.shape[0], weights.numel() // 2
    before = [x[i] for i in range(half, 0, -1)]
    after = [x[length - 1 - i] for i in range(1, half + 1)]
    padded = torch.stack([*before, *x, *after])
    return sum(w * padded[t : t + length] for t, w in enumerate(weights))
