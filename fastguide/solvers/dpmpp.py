"""DPM-Solver and DPM-Solver++ multistep solvers (Lu et al. 2022), deterministic and as SDEs.

Exponential integrators in h, the growth of lambda = log(alpha / sigma) over a step: the linear part
is exact, the denoised image is a polynomial in lambda through the last two or three evaluations.
The SDE forms are those of Lu et al. 2022, appendix, by default with eta 1 (k-diffusion calls them
2M SDE and 3M SDE). With `lower_order_final` the order falls to 1 at the end of the run, as in
diffusers' runs of less than 15 steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from fastguide.common.options import Configured
from fastguide.process import Level
from fastguide.solvers.update import Map, Update, combine, eps, transfer
from fastguide.spacing import Levels

Weights = tuple[float, float, float]


def growth(now: Level, to: Level) -> float:
    """h = log(alpha_to / sigma_to) - log(alpha_now / sigma_now); inf at either end of the
    process, and -inf upwards to it.
    """
    if to.sigma == 0.0 or now.alpha == 0.0:
        return math.inf
    if to.alpha == 0.0:
        return -math.inf
    return math.log(to.alpha / to.sigma) - math.log(now.alpha / now.sigma)


def integrals(h: float) -> Weights:
    """(phi_1, phi_2, phi_3) with phi_k(h) = the integral of e^(u - h) u^(k-1) / (k-1)! /
    h^(k-1) over u from 0 to h; -phi_k(-h) is that of e^(h - u).
    """
    if abs(h) < 1e-2:  # the differences below lose all digits: sum the series instead
        series = [
            sum((-h) ** j * math.factorial(k - 1) / math.factorial(j + k) for j in range(8))
            for k in (1, 2, 3)
        ]
        return h * series[0], h * series[1], h * series[2] / 2
    first = -math.expm1(-h)
    second = 1.0 - first / h
    return first, second, (0.5 * h - second) / h


def _extrapolate(h: float, past: list[float]) -> tuple[Weights, Weights, Weights]:
    """Weights of (now, previous, the one before) in the image, its first and its second difference
    per step of size h, by Newton's divided differences through the known evaluations."""
    image = (1.0, 0.0, 0.0)
    if not past or math.isinf(h) or math.isinf(past[0]):
        return image, (0.0, 0.0, 0.0), (0.0, 0.0, 0.0)
    r0 = past[0] / h
    first = (1.0 / r0, -1.0 / r0, 0.0)
    if len(past) < 2 or math.isinf(past[1]):
        return image, first, (0.0, 0.0, 0.0)
    r1 = past[1] / h
    older = (0.0, 1.0 / r1, -1.0 / r1)
    bend = tuple((a - b) / (r0 + r1) for a, b in zip(first, older, strict=True))
    slope = tuple(a + r0 * b for a, b in zip(first, bend, strict=True))
    return image, (slope[0], slope[1], slope[2]), (bend[0], bend[1], bend[2])


@dataclass(frozen=True)
class _Rule:
    """How a step integrates: its order, by the "midpoint" rule or the exact integrals ("heun") of
    the line through two evaluations, and with half of the parabola's bend or all of it.
    """

    order: int
    line: str = "midpoint"
    half_bend: bool = False
    lower_order_final: bool = False

    def __post_init__(self) -> None:
        if self.line not in ("midpoint", "heun"):
            raise ValueError(f"solver_type is {self.line!r}, but it should be 'midpoint' or 'heun'")


def _mixed(h: float, past: list[float], rule: _Rule, rate: float) -> Weights:
    """What a step of growth h makes of the values now, before and before that; a negative `rate`
    weighs by e^(h - u) instead of e^(u - h).
    """
    phi = integrals(rate * h)
    parts = _extrapolate(h, past[: rule.order - 1])
    midpoint = rule.line == "midpoint" and (rule.order == 2 or len(past) < 2)
    bend = phi[2] if rule.half_bend else 2.0 * phi[2]
    gains = (phi[0], 0.5 * phi[0], 0.0) if midpoint else (phi[0], phi[1], bend)
    mixed = [sum(g * p[i] for g, p in zip(gains, parts, strict=True)) for i in range(3)]
    return mixed[0], mixed[1], mixed[2]


def _history(names: tuple[str, str], value: Map, known: int, order: int) -> dict[str, Map]:
    """Keeps `value`, and at order 3 the one before it."""
    keep: dict[str, Map] = {names[0]: value}
    if order == 3 and known:
        keep[names[1]] = {names[0]: 1.0}
    return keep


def _limited(past: list[float], left: int, lower: bool) -> list[float]:
    """What of the past a step may use with `left` steps to go, its own included. Upwards the last
    step's growth may be far larger than all before, to which nothing can be extrapolated.
    """
    return past[: left - 1] if lower else past


def _multistep(
    levels: Levels, rule: _Rule, eta: float = 0.0, s_noise: float = 1.0
) -> Iterator[Update]:
    """The ODE for `eta` 0, else the SDE whose noise is eta times that of the reverse process."""
    if not 0.0 <= eta < math.inf or not 0.0 <= s_noise < math.inf:
        raise ValueError(f"eta is {eta} and s_noise {s_noise}, but they should not be negative")
    past: list[float] = []  # growths of the steps before, newest first
    names = ("previous", "older")
    steps = list(levels.steps())
    for i, (now, to) in enumerate(steps):
        h = growth(now, to)
        x: dict[str, float] = transfer(now, to)
        if math.isfinite(h):
            lower = rule.lower_order_final or levels.rising
            known = _limited(past, len(steps) - i, lower)
            mixed = _mixed(h, known, rule, 1.0 + eta)
            gains = zip(("denoised", *names), mixed, strict=True)
            keep = to.sigma / now.sigma
            x = {name: to.alpha * c for name, c in gains if c}
            x["x"] = keep * math.exp(-eta * h)
            if eta and s_noise:
                x["noise"] = s_noise * to.sigma * math.sqrt(-math.expm1(-2.0 * eta * h))
        elif eta and to.sigma > 0.0:  # from pure noise nothing of x is kept
            x = {"x": 0.0, "denoised": to.alpha, "noise": s_noise * to.sigma}
        kept = _history(names, {"denoised": 1.0}, len(past), rule.order)
        yield Update(at=now, x=x, keep=kept, over=(now, to))
        past.insert(0, h)


def _multistep_noise(levels: Levels, rule: _Rule) -> Iterator[Update]:
    past: list[float] = []
    names = ("eps1", "eps2")
    steps = list(levels.steps())
    for i, (now, to) in enumerate(steps):
        h = growth(now, to)
        x: dict[str, float] = transfer(now, to)
        if math.isfinite(h):
            lower = rule.lower_order_final or levels.rising
            known = _limited(past, len(steps) - i, lower)
            mixed = _mixed(h, known, rule, -1.0)
            here = eps(now)
            parts = [
                (to.sigma * c, source)
                for c, source in zip(mixed, (here, {"eps1": 1.0}, {"eps2": 1.0}), strict=True)
                if c
            ]
            x = combine((to.alpha / now.alpha, {"x": 1.0}), *parts)
        yield Update(at=now, x=x, keep=_history(names, eps(now), len(past), rule.order))
        past.insert(0, h)


@Configured
def dpmpp_2m(
    levels: Levels, solver_type: str = "midpoint", lower_order_final: bool = False
) -> Iterator[Update]:
    """DPM-Solver++(2M), algorithm 2: order 2, one evaluation a step.

    The first step and the last, to the data, are of order 1. `solver_type` "heun" takes the exact
    integral of the line through two evaluations instead of the midpoint rule (the authors' names).
    """
    yield from _multistep(levels, _Rule(2, solver_type, False, lower_order_final))


@Configured
def dpmpp_3m(
    levels: Levels, published: bool = False, lower_order_final: bool = False
) -> Iterator[Update]:
    """DPM-Solver++(3M): order 3 after a first step of order 1, which limits the whole to 2.

    The authors' code halves the second difference in its multistep form (not in its single-step
    one) and takes the second step by the midpoint rule; `published` does so too. The default
    integrates the parabola through three evaluations exactly, and the line through two.
    """
    line = "midpoint" if published else "heun"
    yield from _multistep(levels, _Rule(3, line, published, lower_order_final))


@Configured
def dpm_2m(
    levels: Levels, solver_type: str = "midpoint", lower_order_final: bool = False
) -> Iterator[Update]:
    """Multistep DPM-Solver-2 (Lu et al. 2022a): as dpmpp_2m, on the noise instead of the image."""
    yield from _multistep_noise(levels, _Rule(2, solver_type, False, lower_order_final))


@Configured
def dpm_3m(
    levels: Levels, published: bool = False, lower_order_final: bool = False
) -> Iterator[Update]:
    """Multistep DPM-Solver-3: as dpmpp_3m, on the noise instead of the image."""
    line = "midpoint" if published else "heun"
    yield from _multistep_noise(levels, _Rule(3, line, published, lower_order_final))


@Configured
def dpmpp_2m_sde(
    levels: Levels,
    eta: float = 1.0,
    s_noise: float = 1.0,
    solver_type: str = "midpoint",
    lower_order_final: bool = False,
) -> Iterator[Update]:
    """SDE-DPM-Solver++(2M): as dpmpp_2m, with fresh noise at every step but the last.

    `eta` is the noise's share of that of the reverse process, 0 the ODE; `s_noise` multiplies what
    is drawn (k-diffusion).
    """
    rule = _Rule(2, solver_type, False, lower_order_final)
    yield from _multistep(levels, rule, eta, s_noise)


@Configured
def dpmpp_3m_sde(
    levels: Levels,
    eta: float = 1.0,
    s_noise: float = 1.0,
    published: bool = False,
    solver_type: str = "heun",
    lower_order_final: bool = False,
) -> Iterator[Update]:
    """SDE-DPM-Solver++(3M): as dpmpp_3m, with fresh noise at every step but the last.

    The widely used "DPM++ 3M SDE" (k-diffusion) is `published=True`, which halves the second
    difference. `solver_type` is the rule of the second step: "heun", the exact integral, there and
    here; "midpoint" in diffusers. `eta`, `s_noise` as for dpmpp_2m_sde.
    """
    rule = _Rule(3, solver_type, published, lower_order_final)
    yield from _multistep(levels, rule, eta, s_noise)
