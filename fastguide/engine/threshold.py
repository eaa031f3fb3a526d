"""Dynamic thresholding of the denoised image (Saharia et al. 2022, Imagen, section 2.3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastguide import reference
from fastguide.common.checks import check_number


@dataclass(frozen=True)
class DynamicThreshold:
    """The denoised image is clamped to [-s, s] and divided by s, s being the `quantile` of its
    absolute values, per sample, but at least `floor` and at most `ceiling`.

    With floor = ceiling = 1 it is the static clamp to [-1, 1].
    """

    quantile: float = 0.995
    floor: float = 1.0
    ceiling: float = math.inf

    def __post_init__(self) -> None:
        check_number("quantile", self.quantile)
        if not 0.0 < self.quantile <= 1.0:
            raise ValueError(f"quantile is {self.quantile}, but it should lie in (0, 1]")
        check_number("floor", self.floor)
        if self.ceiling != math.inf:
            check_number("ceiling", self.ceiling)
        if not 0.0 < self.floor <= self.ceiling:
            raise ValueError(
                f"floor, ceiling are {self.floor}, {self.ceiling}, but 0 < floor <= ceiling"
            )

    def bounds(
        self,
        x: Tensor,
        branches: Sequence[Tensor],
        weights: Tensor,
        row: Tensor,
        deltas: int = 0,
        factor: Tensor | None = None,
        factored: int = 0,
    ) -> Tensor:
        """s fp32 `[B]` for one evaluation; no wait for the device.

        Args:
            x: fp32 `[B, ...]`; the branches are like it, the positive one first.
            weights: `[B or 1, > K]`.
            row: one row of the coefficient table.
            deltas, factor, factored: as in `fastguide.ops.step`.
        """
        sizes = (
            reference.combine(x, branches, weights, row, deltas, factor, factored).abs().flatten(1)
        )
        # linear interpolation between order statistics, as torch.quantile does up to 16M elements
        place = self.quantile * (sizes.shape[1] - 1)
        low = int(place)
        largest = sizes.topk(sizes.shape[1] - low, dim=1).values  # falling; the last is number low
        above = largest[:, -2] if largest.shape[1] > 1 else largest[:, -1]
        s = torch.lerp(largest[:, -1], above, place - low)
        # NaN stays NaN, so that it is reported
        return s.clamp(self.floor, self.ceiling)
