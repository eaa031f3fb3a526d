"""Linear multistep solvers on the noise: LMS, DEIS, PLMS and PNDM.

In y = x / alpha over r = sigma / alpha the probability flow is dy / dr = eps. Each step integrates
a polynomial through the last few eps; they differ in its variable and in how the run starts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from numpy.polynomial.legendre import leggauss

from fastguide.options import Configured
from fastguide.process import Level
from fastguide.solvers.update import Map, Update, combine, eps, transfer
from fastguide.spacing import Levels

_NODES, _WEIGHTS = (tuple(map(float, values)) for values in leggauss(32))
_HISTORY = ("eps1", "eps2", "eps3")  # of the evaluations before this one, newest first


def _integrals(
    nodes: Sequence[float], start: float, end: float, of: Callable[[float], float]
) -> list[float]:
    """Integrals from `start` to `end` of each Lagrange polynomial on `nodes`, times `of`."""
    out = []
    for k, node in enumerate(nodes):
        others = [other for j, other in enumerate(nodes) if j != k]
        total = 0.0
        for position, weight in zip(_NODES, _WEIGHTS, strict=True):
            at = 0.5 * (start + end + (end - start) * position)
            total += weight * of(at) * math.prod((at - o) / (node - o) for o in others)
        out.append(0.5 * (end - start) * total)
    return out


def _step(now: Level, to: Level, gains: Sequence[float]) -> dict[str, float]:
    """y' = y + (r' - r) eps + sum of gains[k] (eps_k - eps) over the history."""
    here = eps(now)
    parts = [
        (to.alpha * gain, combine((1.0, {name: 1.0}), (-1.0, here)))
        for gain, name in zip(gains, _HISTORY, strict=False)
        if gain
    ]
    return combine((1.0, transfer(now, to)), *parts)


def _shift(now: Level, known: int, order: int) -> dict[str, Map]:
    """The history moves on by one: `known` entries of it are filled."""
    keep: dict[str, Map] = {_HISTORY[0]: eps(now)} if order > 1 else {}
    for j in range(1, min(known + 1, order - 1)):
        keep[_HISTORY[j]] = {_HISTORY[j - 1]: 1.0}
    return keep


def _check_order(order: float) -> int:
    if order not in (1, 2, 3, 4):
        raise ValueError(f"order is {order}, but it should be 1, 2, 3 or 4")
    return int(order)


@Configured
def lms(levels: Levels, order: int = 4) -> Iterator[Update]:
    """Linear multistep in r (Adams-Bashforth with unequal steps; k-diffusion's LMS).

    The run starts with steps of order 1, 2, 3, which limit the whole to order 2.
    """
    order = _check_order(order)
    past: list[float] = []  # r of the evaluations before, newest first
    for now, to in levels.steps():
        usable = past[: order - 1] if now.alpha > 0.0 else []
        gains = (
            _integrals([now.ratio, *usable], now.ratio, to.ratio, lambda _: 1.0) if usable else []
        )
        yield Update(now, _step(now, to, gains[1:]), _shift(now, len(usable), order))
        past = [now.ratio, *past] if now.alpha > 0.0 else []


@Configured
def deis(levels: Levels, order: int = 3) -> Iterator[Update]:
    """DEIS (Zhang and Chen 2022) with polynomials in log r ("log-rho"); the last step, to the data,
    is of order 1, as are the first and, with few of them, the start.
    """
    order = _check_order(order)
    past: list[float] = []
    for now, to in levels.steps():
        usable = past[: order - 1] if now.alpha > 0.0 and to.sigma > 0.0 else []
        gains: list[float] = []
        if usable:
            nodes = [math.log(r) for r in (now.ratio, *usable)]
            gains = _integrals(nodes, nodes[0], math.log(to.ratio), math.exp)
        known = min(len(past), order - 1)
        yield Update(now, _step(now, to, gains[1:]), _shift(now, known, order))
        past = [now.ratio, *past] if now.alpha > 0.0 else []


_ADAMS = {
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


@Configured
def pndm(levels: Levels, warmup: bool = True, middle: str = "t") -> Iterator[Update]:
    """PNDM (Liu et al. 2022): Adams-Bashforth weights for equal steps, on DDIM's transfer.

    `warmup` starts with three pseudo Runge-Kutta steps of 4 evaluations ("F-PNDM", 9 more in all);
    without (PLMS, as Stable Diffusion runs it) the first step is corrected by a second evaluation
    at its end and the order rises from there. Runge-Kutta evaluates half-way in "t" as published,
    or in "ratio". The weights are exact for levels that are equally spaced in r: there the order is
    4 (with middle="ratio"), elsewhere 2.
    """
    if middle not in ("t", "ratio"):
        raise ValueError(f"middle is {middle!r}, but it should be 't' or 'ratio'")
    steps = list(levels.steps())
    known = 0
    for i, (now, to) in enumerate(steps):
        if now.alpha == 0.0:  # pure noise: nothing to extrapolate from
            yield Update(now, transfer(now, to))
            continue
        if warmup and known < 3 and to.sigma > 0.0:
            yield from _runge_kutta(levels, now, to, middle, _shift(now, known, 4))
        elif known == 0 and i + 1 < len(steps) and to.sigma > 0.0:
            yield from _corrected(now, to, _shift(now, 0, 4))
        else:
            weights = _ADAMS.get(min(known, 3) + 1, (1.0,))
            gains = [(to.ratio - now.ratio) * w for w in weights[1:]]
            yield Update(now, _step(now, to, gains), _shift(now, known, 4))
        known += 1


def _corrected(now: Level, to: Level, keep: dict[str, Map]) -> Iterator[Update]:
    """One step by the mean of the eps at both of its ends."""
    half = 0.5 * to.alpha * (to.ratio - now.ratio)
    half_way = combine((1.0, _move(now, to)), (half, eps(now)))
    yield Update(now, transfer(now, to), {**keep, "half": half_way})
    yield Update(to, combine((1.0, {"half": 1.0}), (half, eps(to))))


def _move(now: Level, to: Level) -> dict[str, float]:
    """x where y stays."""
    return {"x": to.alpha / now.alpha}


def _runge_kutta(
    levels: Levels, now: Level, to: Level, middle: str, keep: dict[str, Map]
) -> Iterator[Update]:
    """The classical fourth-order method, each stage by DDIM's transfer."""
    process = levels.process
    if middle == "t":
        mid = process.level(0.5 * (now.t + to.t))
    else:
        mid = process.at_ratio(0.5 * (now.ratio + to.ratio))
    first, full = mid.ratio - now.ratio, to.ratio - now.ratio
    slope = full / 6.0
    yield Update(now, transfer(now, mid), {**keep, "y": {"x": 1.0 / now.alpha}, "slope": eps(now)})
    reach = {"y": mid.alpha}
    yield Update(
        mid,
        combine((1.0, reach), (mid.alpha * first, eps(mid))),
        {"slope": combine((1.0, {"slope": 1.0}), (2.0, eps(mid)))},
    )
    yield Update(
        mid,
        combine((1.0, {"y": to.alpha}), (to.alpha * full, eps(mid))),
        {"slope": combine((1.0, {"slope": 1.0}), (2.0, eps(mid)))},
    )
    yield Update(
        to,
        combine((1.0, {"y": to.alpha, "slope": to.alpha * slope}), (to.alpha * slope, eps(to))),
    )
