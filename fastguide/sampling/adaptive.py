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
from fastguide.sampling.field import Field
from fastguide.sampling.setup import set_up
from fastguide.solvers.ddim import ancestral_split
from fastguide.solvers.dpm import inner_levels, scaled
from fastguide.solvers.stages import exponential
from fastguide.spacing import Levels

Method = Literal["rk45", "dpm_adaptive"]
LOWEST = 0.002  # sigma / alpha at which a process that reaches the data is left
MOST = 10_000  # steps


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


# Dormand and Prince (1980): the stages, the fifth order, and its difference to the fourth
_SHARES = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)

State = tuple[Tensor, ...]
Slope = Callable[[float, State], State]


def rk45(
    slope: Slope, state: State, start: float, end: float, rtol: float, atol: float
) -> tuple[State, int, int]:
    """Integrate tensors `[B, ...]` from `start` to `end`; returns them, and the steps accepted and
    rejected. The error of a step is the largest of any sample of the root mean square of
    `error / (atol + rtol max(|before|, |after|))`, over all tensors.
    """
    at, way = start, math.copysign(1.0, end - start)
    size = 0.01 * abs(end - start)
    first = slope(at, state)
    accepted = rejected = 0
    while way * (end - at) > 1e-12:
        if accepted + rejected >= MOST:
            raise RuntimeError(f"no end after {MOST} steps; rtol, atol are {rtol}, {atol}")
        size = min(size, way * (end - at))
        h = way * size
        slopes = [first]
        for share, weights in zip(_SHARES[1:], _STAGES, strict=True):
            moved = _moved(state, h, weights, slopes)
            slopes.append(slope(at + share * h, moved))
        after = moved  # the last stage is the fifth order's end
        error = _largest(_moved(None, h, _ERROR, slopes), state, after, rtol, atol)
        if not math.isfinite(error):
            raise RuntimeError(f"the slope is not finite near {at}")
        if error <= 1.0:
            at, state, first = at + h, after, slopes[-1]
            accepted += 1
        else:
            rejected += 1
        size *= min(10.0, max(0.2, 0.9 * max(error, 1e-10) ** -0.2))
    return state, accepted, rejected


def _moved(
    state: State | None, h: float, weights: Sequence[float], slopes: Sequence[State]
) -> State:
    sums = [
        sum((h * w * one for w, one in zip(weights, parts, strict=False) if w), torch.zeros(()))
        for parts in zip(*slopes, strict=True)
    ]
    if state is None:
        return tuple(sums)
    return tuple(x + moved for x, moved in zip(state, sums, strict=True))


def _largest(error: State, before: State, after: State, rtol: float, atol: float) -> float:
    batch = before[0].shape[0]
    parts = [
        (e / (atol + rtol * torch.maximum(a.abs(), b.abs()))).reshape(batch, -1).square()
        for e, a, b in zip(error, before, after, strict=True)
    ]
    return float(torch.cat(parts, 1).mean(1).sqrt().max())


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
        run = _Adaptive(field, process, numbers, last, order, eta, s_noise)
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


class _Adaptive:
    """DPM-Solver with two orders and a controller of its step in log(sigma / alpha)."""

    def __init__(
        self,
        field: Field,
        process: Process,
        seeds: Tensor,
        last: Level,
        order: int,
        eta: float,
        s_noise: float,
    ) -> None:
        if order not in (2, 3):
            raise ValueError(f"order is {order}, but it should be 2 or 3")
        self.field, self.process, self.seeds, self.last = field, process, seeds, last
        self.order, self.eta, self.s_noise = order, eta, s_noise

    def __call__(
        self, x: Tensor, first: Level, rtol: float, atol: float
    ) -> tuple[Tensor, int, int]:
        now, size, accepted, rejected, drawn = first, 0.05, 0, 0, 0
        if now.alpha == 0.0:  # pure noise: down to where its signal is as weak as usual
            now = self.process.at_ratio(80.0)
            image = self.field(x, first)
            x = now.alpha * image + now.sigma / first.sigma * x
        power = -1.0 / (1.5 if self.eta else self.order)
        before = x / now.alpha
        y = before
        while math.log(now.ratio / self.last.ratio) > 1e-5:
            if accepted + rejected >= MOST:
                raise RuntimeError(f"no end after {MOST} steps; rtol, atol are {rtol}, {atol}")
            ratio = max(self.last.ratio, now.ratio * math.exp(-size))
            to = self.last if ratio == self.last.ratio else self.process.at_ratio(ratio)
            down, up = ancestral_split(now, to, self.eta)
            if up:
                down = max(down, self.last.ratio)
                up = math.sqrt(max(to.ratio**2 - down**2, 0.0))
            low, high = self._pair(y, now, down)
            scale = (rtol * torch.maximum(low.abs(), before.abs())).clamp(min=atol)
            error = ((low - high) / scale).flatten(1).square().mean(1).sqrt().max().item()
            factor = 1.0 + math.atan((error + 1e-8) ** power - 1.0)
            if factor >= 0.81:
                before, y, now = low, high, to
                accepted += 1
                if up * self.s_noise:
                    drawn += 1
                    draw = ops.noise(self.seeds, y.shape[1:], drawn)
                    y = y + up * self.s_noise * draw
            else:
                rejected += 1
            size *= factor
        return y * now.alpha, accepted, rejected

    def _pair(self, y: Tensor, now: Level, ratio: float) -> tuple[Tensor, Tensor]:
        """y at sigma / alpha = `ratio` by the lower and the higher order, which share values."""
        at = inner_levels(self.process, now, ratio, self.order)
        end = scaled(Level(0.0, 1.0, 1.0), ratio)
        high, _ = exponential(at, end, on_noise=True, exact=True)
        low, _ = exponential(at[:-1], end, on_noise=True)
        x, values = y * now.alpha, []
        for stage, level in zip([None, *high[:-1]], at, strict=True):
            if stage is not None:
                x = _sum(y * now.alpha, stage.base, stage.weights, values)
            values.append((x - level.alpha * self.field(x, level)) / level.sigma)
        start = y * now.alpha
        return tuple(_sum(start, one[-1].base, one[-1].weights, values) for one in (low, high))


def _sum(x: Tensor, base: float, weights: Sequence[float], values: Sequence[Tensor]) -> Tensor:
    return base * x + sum(w * v for w, v in zip(weights, values, strict=False) if w)
