"""Multistep sampling of consistency models (Song et al. 2023, algorithm 1)."""

from __future__ import annotations

import math
from collections.abc import Iterator

from fastguide.common.options import Configured
from fastguide.process import EDM
from fastguide.solvers.update import Update
from fastguide.spacing import Levels


@Configured
def consistency(levels: Levels, sigma_min: float | None = None) -> Iterator[Update]:
    """`x' = alpha' (denoised + sqrt(r'^2 - sigma_min^2) n)`, r = sigma / alpha: each evaluation
    jumps to the data, fresh noise goes back up.

    `sigma_min` is the noise of what the model calls data; by default EDM's own, else 0.
    """
    if sigma_min is None:
        sigma_min = levels.process.sigma_min if isinstance(levels.process, EDM) else 0.0
    if sigma_min < 0.0:
        raise ValueError(f"sigma_min is {sigma_min}, but it should not be negative")
    for now, to in levels.steps():
        back = math.sqrt(max(to.sigma**2 - (to.alpha * sigma_min) ** 2, 0.0))
        x = {"denoised": to.alpha}
        yield Update(now, {**x, "noise": back} if back else x)
