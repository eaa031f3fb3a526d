"""Single-step DPM-Solver and DPM-Solver++ (Lu et al. 2022a, b): several evaluations a step, none
kept for the next. Also k-diffusion's "DPM2", DPM-Solver-2 with churn or ancestral noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from fastguide.common.options import Configured
from fastguide.process import Level, Process
from fastguide.solvers.ddim import ancestral_split
from fastguide.solvers.edm import churned, raise_start, with_next
from fastguide.solvers.stages import apart, between, exponential, staged
from fastguide.solvers.update import Update, transfer
from fastguide.spacing import Levels

SHARES = {1: (), 2: (1 / 2,), 3: (1 / 3, 2 / 3)}  # of a step, where evaluations within it lie


def inner_levels(process: Process, now: Level, ratio: float, order: int) -> list[Level]:
    """The evaluations of a step from `now` to sigma / alpha = `ratio`."""
    return [now, *(process.at_ratio(between(now, ratio, share)) for share in SHARES[order])]


def scaled(to: Level, ratio: float) -> Level:
    """What a step ends at: sigma / alpha = `ratio` at the scale of `to`; never evaluated."""
    return Level(to.t, to.alpha, to.alpha * ratio)


def ancestral(
    levels: Levels, order: int, on_noise: bool, eta: float, s_noise: float
) -> Iterator[Update]:
    """Single steps down to less noise than asked for, then fresh noise up to it."""
    for now, to in levels.steps():
        down, up = ancestral_split(now, to, eta)
        drawn = {"noise": to.alpha * up * s_noise} if up * s_noise else {}
        if down == 0.0 or not apart(now, to):
            yield Update(now, {**transfer(now, to, to.alpha * down), **drawn}, over=(now, to))
            continue
        at = inner_levels(levels.process, now, down, order)
        stages, value = exponential(at, scaled(to, down), on_noise)
        stages[-1] = replace(stages[-1], more=drawn)
        *first, last = staged(at, stages, value)
        yield from first
        yield replace(last, over=(now, to))


@Configured
def dpm_2(
    levels: Levels,
    churn: float = 0.0,
    s_min: float = 0.0,
    s_max: float = math.inf,
    s_noise: float = 1.0,
) -> Iterator[Update]:
    """DPM-Solver-2 with the churn of EDM (k-diffusion's DPM2): `y' = y + (r' - r) eps_mid`, y = x /
    alpha, r = sigma / alpha, with eps half-way in log r. 2 N - 1 evaluations; options as for euler.
    """
    steps = churned(levels, churn, s_min, s_max, s_noise)
    yield from raise_start(steps)
    for step, following in zip(steps, [*steps[1:], None], strict=True):
        now, to = step.hat, step.to
        if not apart(now, to):
            yield Update(now, with_next(transfer(now, to), following))
            continue
        at = inner_levels(levels.process, now, to.ratio, 2)
        *first, last = staged(at, *exponential(at, to, on_noise=True))
        yield from first
        yield replace(last, x=with_next(last.x, following))


@Configured
def dpm_2_ancestral(levels: Levels, eta: float = 1.0, s_noise: float = 1.0) -> Iterator[Update]:
    """dpm_2 down to less noise, then fresh noise up, as euler_ancestral (k-diffusion's DPM2 a)."""
    yield from ancestral(levels, 2, True, eta, s_noise)


@Configured
def dpmpp_2s_ancestral(levels: Levels, eta: float = 1.0, s_noise: float = 1.0) -> Iterator[Update]:
    """Single-step DPM-Solver++ of order 2 down to less noise, then fresh noise up (k-diffusion)."""
    yield from ancestral(levels, 2, False, eta, s_noise)


@Configured
def dpmpp_sde(
    levels: Levels, eta: float = 1.0, s_noise: float = 1.0, r: float = 0.5
) -> Iterator[Update]:
    """SDE-DPM-Solver++ with a stage at the share `r` of the step in lambda (k-diffusion's DPM++
    SDE): ancestral steps to the stage and, with the image `(1 - 1 / 2r) D + D_stage / 2r`, to the
    end.

    Both add increments of one Brownian path over sigma / alpha, so the second contains the first.
    2 N - 1 evaluations, as many draws but one.
    """
    if not 0.0 < r < 1.0:
        raise ValueError(f"r is {r}, but it should lie between 0 and 1")
    share = 1.0 / (2.0 * r)
    for now, to in levels.steps():
        down, up = ancestral_split(now, to, eta)
        x = transfer(now, to, to.alpha * down)
        if not apart(now, to):
            drawn = to.alpha * up * s_noise
            yield Update(now, {**x, "noise": drawn} if drawn else x, over=(now, to))
            continue
        middle = levels.process.at_ratio(between(now, to.ratio, r))
        first_down, first_up = ancestral_split(now, middle, eta)
        reach = transfer(now, middle, middle.alpha * first_down)
        half = {"x": x["x"], "denoised": (1.0 - share) * x["denoised"]}
        rest = {"stage1": 1.0, "denoised": share * x["denoised"]}
        if up * s_noise:
            # the path's increments of both parts, in units of that of the whole
            before = (now.ratio - middle.ratio) / (now.ratio - to.ratio)
            reach["noise"] = middle.alpha * first_up * s_noise
            half["noise"] = to.alpha * up * s_noise * math.sqrt(before)
            rest["noise"] = to.alpha * up * s_noise * math.sqrt(1.0 - before)
        yield Update(now, reach, {"stage1": half}, over=(now, middle))
        yield Update(middle, rest, over=(middle, to))


@Configured
def dpm_fast(levels: Levels, eta: float = 0.0, s_noise: float = 1.0) -> Iterator[Update]:
    """DPM-Solver-fast (Lu et al. 2022a, section 3.4; k-diffusion): as many evaluations as steps, in
    single steps of order 3 and two lower ones at the end, even in log(sigma / alpha) between the
    first and the last noisy level. Of the levels between these only the number is read. Not for
    inversion.
    """
    if levels.rising:
        raise ValueError(
            "solver is dpm_fast, whose lower orders would come where the noise is largest: for an "
            "inversion take fastguide.dpm_single"
        )
    middle = [point for point in levels.points if point.alpha * point.sigma > 0.0]
    before, *_, after = levels.points
    if before.alpha == 0.0:  # pure noise: nothing lies evenly below it
        yield Update(before, transfer(before, levels.points[1]))
    if not middle:
        return
    first, last, left = middle[0], middle[-1], len(middle) - 1
    count = left // 3 + 1
    orders = [3] * (count - 2) + [2, 1] if left % 3 == 0 else [3] * (count - 1) + [left % 3]
    if left == 0:
        orders = []
    now = first
    for i, order in enumerate(orders, 1):
        end = i == len(orders)
        to = last if end else levels.process.at_ratio(between(first, last.ratio, i / len(orders)))
        down, up = ancestral_split(now, to, eta)
        if up:
            down = max(down, min(last.ratio, to.ratio))
            up = math.sqrt(max(to.ratio**2 - down**2, 0.0))
        at = inner_levels(levels.process, now, down, order)
        stages, value = exponential(at, scaled(to, down), on_noise=True, exact=True)
        drawn = {"noise": to.alpha * up * s_noise} if up * s_noise else {}
        stages[-1] = replace(stages[-1], more=drawn)
        *inner, end_of_step = staged(at, stages, value)
        yield from inner
        yield replace(end_of_step, over=(now, to))
        now = to
    if after is not last:
        yield Update(last, transfer(last, after))


def _groups(levels: Levels, order: int, lower_order_final: bool) -> Iterator[Sequence[Level]]:
    """The levels in groups, from the begin of a step to its end."""
    points = list(levels.points)
    start = 0
    while start < len(points) - 1:
        size = min(order, len(points) - 1 - start)
        if lower_order_final and size == order > 1 and start + size == len(points) - 1:
            size -= 1
        while size > 1 and not apart(points[start], points[start + size]):
            size -= 1
        if size > 1 and not apart(points[start], points[start + 1]):
            size = 1
        yield points[start : start + size + 1]
        start += size


def _single(
    levels: Levels, on_noise: bool, order: int, line: str, inner: str, lower_order_final: bool
) -> Iterator[Update]:
    if order not in (1, 2, 3):
        raise ValueError(f"order is {order}, but it should be 1, 2 or 3")
    if line not in ("midpoint", "heun"):
        raise ValueError(f"solver_type is {line!r}, but it should be 'midpoint' or 'heun'")
    if inner not in ("between", "levels"):
        raise ValueError(f"inner is {inner!r}, but it should be 'between' or 'levels'")
    on_levels = inner == "levels"
    for group in _groups(levels, int(order) if on_levels else 1, lower_order_final):
        now, to = group[0], group[-1]
        if not apart(now, to):
            yield Update(now, transfer(now, to))
            continue
        at = list(group[:-1])
        if not on_levels:
            at = inner_levels(levels.process, now, to.ratio, int(order))
        yield from staged(at, *exponential(at, to, on_noise, line, exact=not on_levels))


@Configured
def dpm_single(
    levels: Levels,
    order: int = 3,
    solver_type: str = "midpoint",
    inner: str = "between",
    lower_order_final: bool = False,
) -> Iterator[Update]:
    """Single-step DPM-Solver-2 or -3 (Lu et al. 2022a), on the noise.

    `inner` "between" evaluates within each step, half-way in lambda or at its thirds: `order` N
    evaluations. "levels" takes `order` of the run's own steps as one, each level evaluated once: N
    evaluations, as in diffusers; `lower_order_final` then ends with a step of order 1.
    `solver_type` "heun" is the authors' "taylor". The step to the data is of order 1.
    """
    yield from _single(levels, True, order, solver_type, inner, lower_order_final)


@Configured
def dpmpp_single(
    levels: Levels,
    order: int = 2,
    solver_type: str = "midpoint",
    inner: str = "between",
    lower_order_final: bool = False,
) -> Iterator[Update]:
    """Single-step DPM-Solver++ of order 2 (2S) or 3 (3S): as dpm_single, on the denoised image."""
    yield from _single(levels, False, order, solver_type, inner, lower_order_final)
