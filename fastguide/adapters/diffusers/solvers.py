"""Solvers of distilled models, as diffusers' schedulers define them."""

from __future__ import annotations

import math
from collections.abc import Iterator

from fastguide.common.options import Configured
from fastguide.process import Level
from fastguide.solvers.update import Update, combine, transfer
from fastguide.spacing import Levels


@Configured
def lcm(levels: Levels, scaling: float = 10.0, sigma_data: float = 0.5) -> Iterator[Update]:
    """Latent consistency models (Luo et al. 2023): `image = c_out denoised + c_skip x`, then up to
    the next level with fresh noise; `c_skip = s^2 / (u^2 + s^2)`, `c_out = u / sqrt(u^2 + s^2)`,
    u = scaling t.
    """
    for now, to in levels.steps():
        square = (scaling * now.t) ** 2 + sigma_data**2
        skip, out = sigma_data**2 / square, scaling * now.t / math.sqrt(square)
        x = combine((to.alpha * out, {"denoised": 1.0}), (to.alpha * skip, {"x": 1.0}))
        yield Update(now, {**x, "noise": to.sigma} if to.sigma else x)


@Configured
def tcd(levels: Levels, marks: tuple[Level, ...] = ()) -> Iterator[Update]:
    """Trajectory consistency distillation (Zheng et al. 2024): DDIM down to the mark of each step,
    then fresh noise up to its end; the last step ends at its mark.
    """
    for (now, to), mark in zip(levels.steps(), marks, strict=True):
        lift = to.alpha / mark.alpha
        std = math.sqrt(max(1.0 - lift * lift, 0.0))
        x = combine((lift, transfer(now, mark)))
        yield Update(now, {**x, "noise": std} if std else x)
