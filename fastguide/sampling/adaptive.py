"""Runs that choose their steps: the probability flow to a tolerance, and DPM-Solver's adaptive one.

All samples of a batch share their steps, which the sample with the largest error decides: a sample
differs by about the tolerance from what it is in another batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from fastguide import ops
from fastguide.common.checks import check_name, check_number
from fastguide.engine.plan import start_std
from fastguide.guidance.base import Guidance
from fastguide.model import Model
from fastguide.process import Level, Process
from fastguide.sampling.course import Clamp
from fastguide.sampling.dpm_adaptive import DPMAdaptive
from fastguide.sampling.field import Field
from fastguide.sampling.integrate import rk45
from fastguide.sampling.setup import set_up
from fastguide.spacing import Levels

Method = Literal["rk45", "dpm_adaptive"]
LOWEST = 0.002  # sigma / alpha at which a process that reaches the data is left


@dataclass(frozen=True)
class Solved:
    """What an adaptive run found: samples fp32 `[B, *shape]`, and what it took."""

    images: Tensor
    evaluations: int
    accepted: int
    rejected: int


def ends(process: Process, levels: Levels | None) -> tuple[Level, Level, Levels]:
    """Where a run begins and ends, both noisy, and the levels that say so."""
    if levels is None:
        low = process.level(process.t_min)
        low = low if low.sigma > 0.0 else process.at_ratio(LOWEST)
        levels = Levels(process, (process.level(process.t_max), low))
    noisy = [point for point in levels.points if point.sigma > 0.0]
    if len(noisy) < 2:
        raise ValueError(f"levels has {len(noisy)} points with noise, but a run needs two ends")
    return noisy[0], noisy[-1], levels


def rotated(process: Process, angle: float) -> tuple[Level, float]:
    """The level with sigma / alpha = tan(angle), and x per z = x / sqrt(alpha^2 + sigma^2) there.

    In z over the angle the probability flow is `dz / da = cos a eps - sin a denoised`, which stays
    finite from pure noise to the data.
    """
    pure = angle >= 0.5 * math.pi - 1e-12
    level = process.at_ratio(math.inf if pure else math.tan(angle))
    return level, math.hypot(level.alpha, level.sigma)


def angle_of(level: Level) -> float:
    """atan(sigma / alpha)."""
    return math.atan2(level.sigma, level.alpha)


def flow(field: Field, process: Process) -> Callable[[float, Tensor], Tensor]:
    """The slope of z over the angle."""

    def slope(angle: float, z: Tensor) -> Tensor:
        level, size = rotated(process, angle)
        cosine, sine = level.alpha / size, level.sigma / size
        image = field(z * size, level)
        return (cosine * z - image) / sine  # cos eps - sin image, eps = (z - cos image) / sin

    return slope


@torch.inference_mode(False)
@torch.no_grad()
def ode(
    model: Model,
    cond: Any = None,
    guidance: Guidance | None = None,
    seeds: int | Iterable[int] | Tensor = 0,
    *,
    method: Method = "rk45",
    rtol: float | None = None,
    atol: float | None = None,
    order: int = 3,
    eta: float = 0.0,
    s_noise: float = 1.0,
    negative: Any = None,
    levels: Levels | None = None,
    clamp: Clamp = None,
    dtype: torch.dtype | None = None,
    shape: Sequence[int] | None = None,
    device: torch.device | str | None = None,
    noise: Tensor | None = None,
) -> Solved:
    """Sample along the probability flow with steps that keep each one's error within a tolerance.

    Args:
        method: "rk45", Dormand and Prince's pair (Song et al. 2021, section 4.3), in x /
            sqrt(alpha^2 + sigma^2) over atan(sigma / alpha); or "dpm_adaptive", DPM-Solver-12 or
            -23 with a PID controller (Lu et al. 2022a; k-diffusion), in log(sigma / alpha).
        rtol, atol: relative and absolute tolerance of a step; by default 1e-4 and 1e-4, for
            "dpm_adaptive" 0.05 and 0.0078, k-diffusion's.
        order, eta, s_noise: of "dpm_adaptive": 2 or 3, and ancestral noise.
        levels: of which only the noisiest and the least noisy are read, where the run begins and
            ends; by default those of the process, down to sigma / alpha = 0.002 where that has
            none. From there the denoised image is taken, where levels go on to the data.
        cond, guidance, seeds, negative, clamp, dtype, shape, device, noise: as for
            `fastguide.sample`. A guidance must not depend on earlier evaluations nor on the place
            in a run.

    The host looks at the error of each step, so it waits for the device.
    """
    check_name("method", method, get_args(Method))
    setup = set_up(model, shape, device, dtype)
    process = model.process
    first, last, asked = ends(process, levels)
    numbers = ops.as_seeds(seeds, setup.device)
    field = Field(setup, guidance, clamp, cond, negative, numbers)
    sides = (len(numbers), *setup.settings.shape)
    if noise is None:
        noise = ops.noise(numbers, setup.settings.shape)
    elif tuple(noise.shape) != sides:
        raise ValueError(f"noise.shape is {tuple(noise.shape)}, but it should be {sides}")
    x = noise.to(setup.device, torch.float32) * start_std(asked)
    tolerances = _tolerances(method, rtol, atol)
    if method == "rk45":
        if (order, eta, s_noise) != (3, 0.0, 1.0):
            raise ValueError(
                f"order, eta, s_noise are {order}, {eta}, {s_noise}, but only method "
                "'dpm_adaptive' has them"
            )
        of = flow(field, process)
        size = math.hypot(first.alpha, first.sigma)
        found, accepted, rejected = rk45(
            lambda angle, state: (of(angle, state[0]),),
            (x / size,),
            angle_of(first),
            angle_of(last),
            *tolerances,
        )
        x = found[0] * math.hypot(last.alpha, last.sigma)
    else:
        run = DPMAdaptive(field, process, numbers, last, order, eta, s_noise)
        x, accepted, rejected = run(x, first, *tolerances)
    if levels is None or asked.points[-1].sigma == 0.0:
        x = field(x, last)
    if not bool(torch.isfinite(x).all()):
        raise RuntimeError("samples are not finite")
    return Solved(x, field.evaluations, accepted, rejected)


def _tolerances(method: str, rtol: float | None, atol: float | None) -> tuple[float, float]:
    usual = (1e-4, 1e-4) if method == "rk45" else (0.05, 0.0078)
    found = []
    for name, value, default in zip(("rtol", "atol"), (rtol, atol), usual, strict=True):
        if value is not None:
            check_number(name, value, 0.0, open_=True)
        found.append(default if value is None else float(value))
    return found[0], found[1]
