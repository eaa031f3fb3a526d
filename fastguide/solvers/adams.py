"""Linear multistep solvers on the noise: LMS, DEIS, PLMS and PNDM.

In y = x / alpha over r = sigma / alpha the probability flow is dy / dr = eps. Each step integrates
a polynomial through the last few eps; they differ in its variable and in how the run starts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from numpy.polynomial.legendre import leggauss

from fastguide.common.options import Configured
from fastguide.process import Level
from fastguide.solvers.edm import trapezoid
from fastguide.solvers.update import Map, Update, combine, eps, transfer
from fastguide.spacing import Levels

_NODES, _WEIGHTS = (tuple(map(float, values)) for values in leggauss(32))
_HISTORY = ("eps1", "eps2", "eps3")  # of the evaluations before this one, newest first


def _falling(levels: Levels, name: str) -> None:
    """Raise ValueError where levels rise: a polynomial in r is then extrapolated over steps that
    each are larger than all before, and its weights grow without bound.
    """
    if levels.rising:
        raise ValueError(
            f"solver is {name}, which extrapolates in sigma / alpha: its steps grow upwards, and "
            "an inversion by it diverges; take fastguide.ddim, heun, deis, dpmpp_2m or unipc"
        )


def _integrals(nodes: Sequence[float], end: float, of: Callable[[float], float]) -> list[float]:
    """Integrals from the first node to `end` of each Lagrange polynomial on `nodes`, times `of`."""
    out, start = [], nodes[0]
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


def _multistep(
    levels: Levels,
    order: int,
    variable: Callable[[float], float],
    slope: Callable[[float], float],
    to_data: bool,
    lower_order_final: bool = False,
) -> Iterator[Update]:
    """Polynomials in `variable(r)`, in which dr is `slope`; without `to_data` the step to the data
    is of order 1.
    """
    if order not in (1, 2, 3, 4):
        raise ValueError(f"order is {order}, but it should be 1, 2, 3 or 4")
    before = int(order) - 1
    past: list[float] = []  # r of the evaluations before, newest first; pure noise has none
    steps = list(levels.steps())
    for i, (now, to) in enumerate(steps):
        gains: list[float] = []
        used = min(before, len(steps) - i - 1) if lower_order_final or levels.rising else before
        if past and used and (to_data or to.sigma > 0.0) and to.alpha > 0.0:
            nodes = [variable(r) for r in (now.ratio, *past[:used])]
            gains = _integrals(nodes, variable(to.ratio), slope)
        known = min(len(past), before)
        yield Update(now, _step(now, to, gains[1:]), _shift(now, known, before + 1))
        past = [now.ratio, *past] if now.alpha > 0.0 else []


@Configured
def lms(levels: Levels, order: int = 4) -> Iterator[Update]:
    """Linear multistep in r (Adams-Bashforth with unequal steps; k-diffusion's LMS).

    The run starts with steps of order 1, 2, 3, which limit the whole to order 2. Not for inversion.
    """
    if order != 1:
        _falling(levels, "lms")
    yield from _multistep(levels, order, lambda r: r, lambda _: 1.0, to_data=True)


@Configured
def deis(levels: Levels, order: int = 3, lower_order_final: bool = False) -> Iterator[Update]:
    """DEIS (Zhang and Chen 2022) with polynomials in log r ("log-rho"). The first step and the
    last, to the data, are of order 1. `lower_order_final` as for `dpmpp_2m`.
    """
    yield from _multistep(levels, order, math.log, math.exp, False, lower_order_final)


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
    4 (with middle="ratio"), elsewhere 2. Not for inversion.
    """
    if middle not in ("t", "ratio"):
        raise ValueError(f"middle is {middle!r}, but it should be 't' or 'ratio'")
    _falling(levels, "pndm")
    steps = list(levels.steps())
    known = 0
    for i, (now, to) in enumerate(steps):
        if now.alpha == 0.0 or to.alpha == 0.0:  # pure noise: nothing to extrapolate from
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
    half, corrected = trapezoid(now, to, "ratio")
    yield Update(now, transfer(now, to), {**keep, "half": half})
    yield Update(to, corrected)


def _runge_kutta(
    levels: Levels, now: Level, to: Level, middle: str, keep: dict[str, Map]
) -> Iterator[Update]:
    """The classical fourth-order method, each stage by DDIM's transfer; slot "y" is x / alpha at
    `now`, "slope" the sum of eps so far.
    """
    process = levels.process
    if middle == "t":
        mid = process.level(0.5 * (now.t + to.t))
    else:
        mid = process.at_ratio(0.5 * (now.ratio + to.ratio))

    def reach(end: Level, at: Level) -> dict[str, float]:
        """x at `end`, from `now` along the eps at `at`."""
        return combine((end.alpha, {"y": 1.0}), (end.alpha * (end.ratio - now.ratio), eps(at)))

    twice = {"slope": combine((1.0, {"slope": 1.0}), (2.0, eps(mid)))}
    yield Update(now, transfer(now, mid), {**keep, "y": {"x": 1.0 / now.alpha}, "slope": eps(now)})
    yield Update(mid, reach(mid, mid), twice)
    yield Update(mid, reach(to, mid), twice)
    sixth = to.alpha * (to.ratio - now.ratio) / 6.0
    slopes = combine((1.0, {"slope": 1.0}), (1.0, eps(to)))
    yield Update(to, combine((to.alpha, {"y": 1.0}), (sixth, slopes)))
