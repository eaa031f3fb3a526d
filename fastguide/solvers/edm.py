"""Euler and Heun with optional churn (Karras et al. 2022, algorithms 1 and 2), on any process."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from fastguide.common.options import Configured
from fastguide.process import Level, Process
from fastguide.solvers.update import Update, combine, eps, transfer
from fastguide.spacing import Levels


@dataclass(frozen=True)
class _Step:
    """One step: raised from `now` to `hat` by noise, then down to `to`; `lift` and `std` do the
    raise.
    """

    hat: Level
    to: Level
    lift: float
    std: float


def churned(
    levels: Levels, churn: float, s_min: float, s_max: float, s_noise: float
) -> list[_Step]:
    if churn < 0.0 or s_noise <= 0.0:
        raise ValueError(f"churn is {churn} and s_noise {s_noise}, but they should not be negative")
    steps = list(levels.steps())
    gamma = min(churn / len(steps), math.sqrt(2.0) - 1.0)
    out = []
    for now, to in steps:
        hat = now
        if gamma > 0.0 and s_min <= now.ratio <= s_max and now.alpha > 0.0:  # pure noise stays
            hat = levels.process.at_ratio(now.ratio * (1.0 + gamma))
        lift = 1.0 if hat is now else hat.alpha / now.alpha
        std = math.sqrt(max(hat.sigma**2 - (lift * now.sigma) ** 2, 0.0))
        out.append(_Step(hat, to, lift, 0.0 if hat is now else s_noise * std))
    return out


def with_next(x: Mapping[str, float], following: _Step | None) -> dict[str, float]:
    """The map to x, composed with the raise that the next step begins with."""
    if following is None or following.std == 0.0:
        return dict(x)
    return {**{name: following.lift * c for name, c in x.items()}, "noise": following.std}


def raise_start(steps: list[_Step]) -> Iterator[Update]:
    if steps[0].std > 0.0:
        yield Update(at=None, x={"x": steps[0].lift, "noise": steps[0].std})


@Configured
def euler(
    levels: Levels,
    churn: float = 0.0,
    s_min: float = 0.0,
    s_max: float = math.inf,
    s_noise: float = 1.0,
) -> Iterator[Update]:
    """Euler's method: without churn the rows of ddim, which EDM's and flow's Euler both are.

    `churn`, `s_min`, `s_max`, `s_noise` are S_churn, S_min, S_max, S_noise of EDM; sigma is read as
    sigma / alpha.
    """
    steps = churned(levels, churn, s_min, s_max, s_noise)
    yield from raise_start(steps)
    for step, following in zip(steps, [*steps[1:], None], strict=True):
        yield Update(at=step.hat, x=with_next(transfer(step.hat, step.to), following))


def trapezoid(
    now: Level, to: Level, over: str, middle: Level | None = None, share: float = 1.0
) -> tuple[dict[str, float], dict[str, float]]:
    """The slot "half", which adds its part of the slope at `now`, and x, which adds that at
    `middle`, a `share` of the step away: `1 - 1 / 2 share` and `1 / 2 share`. The slope is
    `denoised rise + eps fall` over "x", or over "ratio" as heun says.
    """
    if over == "x":
        stay, rise, fall = 1.0, to.alpha - now.alpha, to.sigma - now.sigma
    else:
        stay, rise, fall = to.alpha / now.alpha, 0.0, to.alpha * (to.ratio - now.ratio)
    late = 0.5 / share
    slope, early = {"denoised": rise}, 1.0 - late
    half = combine((stay, {"x": 1.0}), (early, slope), (early * fall, eps(now)))
    end = combine((1.0, {"half": 1.0}), (late, slope), (late * fall, eps(middle or to)))
    return half, end


@Configured
def heun(
    levels: Levels,
    churn: float = 0.0,
    s_min: float = 0.0,
    s_max: float = math.inf,
    s_noise: float = 1.0,
    over: str = "x",
    alpha: float = 1.0,
) -> Iterator[Update]:
    """Heun's second-order method: 2 N - 1 evaluations, the last step to the data is Euler's.

    The trapezoid rule on `dx = denoised d alpha + eps d sigma`: EDM's algorithm 2 where alpha is 1,
    and Heun in t for flow. `over="ratio"` is the rule on x / alpha over sigma / alpha instead,
    which k-diffusion and diffusers use on VP levels. `alpha` is where the second evaluation lies
    within the step, in t or that ratio: 1 Heun, 2/3 Ralston, 1/2 the midpoint rule (EDM, appendix
    D.2). Other options as for euler.
    """
    if over not in ("x", "ratio"):
        raise ValueError(f"over is {over!r}, but it should be 'x' or 'ratio'")
    if not 0.0 < alpha <= 1.0:
        raise ValueError(f"alpha is {alpha}, but it should lie in (0, 1]")
    steps = churned(levels, churn, s_min, s_max, s_noise)
    yield from raise_start(steps)
    for step, following in zip(steps, [*steps[1:], None], strict=True):
        now, to = step.hat, step.to
        if to.sigma == 0.0 or (over == "ratio" and now.alpha * to.alpha == 0.0):
            yield Update(at=now, x=with_next(transfer(now, to), following))
            continue
        middle = to if alpha == 1.0 else _within(levels.process, now, to, over, alpha)
        half, corrected = trapezoid(now, to, over, middle, alpha)
        yield Update(at=now, x=transfer(now, middle), keep={"half": half})
        yield Update(at=middle, x=with_next(corrected, following))


def _within(process: Process, now: Level, to: Level, over: str, share: float) -> Level:
    if over == "x":
        return process.level(now.t + share * (to.t - now.t))
    return process.at_ratio(now.ratio + share * (to.ratio - now.ratio))
