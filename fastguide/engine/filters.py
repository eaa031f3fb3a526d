"""The fine part of an image: what a Laplacian pyramid keeps above its coarse image."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_BINOMIAL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)


def high_pass(image: Tensor, levels: int) -> Tensor:
    """`image` `[B, C, H, W]` less its coarse part: blurred and halved `levels` times, then doubled
    and blurred as often (Burt and Adelson 1983). fp32.
    """
    coarse, sizes = image.float(), []
    for _ in range(levels):
        sizes.append((coarse.shape[2], coarse.shape[3]))
        half = (max(sizes[-1][0] // 2, 1), max(sizes[-1][1] // 2, 1))
        coarse = F.interpolate(_blurred(coarse), size=half, mode="bilinear", align_corners=False)
    for size in reversed(sizes):
        coarse = _blurred(F.interpolate(coarse, size=size, mode="bilinear", align_corners=False))
    return image.float() - coarse


def _blurred(image: Tensor) -> Tensor:
    """The binomial filter of five taps along both sides, reflected at the border."""
    for dim in (2, 3):
        size = image.shape[dim]
        if size < 3:  # too small to reflect two pixels
            continue
        padded = F.pad(image, (0, 0, 2, 2) if dim == 2 else (2, 2, 0, 0), mode="reflect")
        image = sum(
            (tap * padded.narrow(dim, i, size) for i, tap in enumerate(_BINOMIAL)),
            torch.zeros_like(image),
        )
    return image
