"""Linear multistep solvers on the noise by polynomials: LMS and DEIS.

In y = x / alpha over r = sigma / alpha the probability flow is dy / dr = eps. Each step integrates
a polynomial through the last few eps; they differ in its variable and in how the run starts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from numpy.polynomial.legendre import leggauss

from fastguide.common.options import Configured
from fastguide.process import Level
from fastguide.solvers.update import Map, Update, combine, eps, transfer
from fastguide.spacing import Levels

_NODES, _WEIGHTS = (tuple(map(float, values)) for values in leggauss(32))
_HISTORY = ("eps1", "eps2", "eps3")  # of the evaluations before this one, newest first


def falling(levels: Levels, name: str) -> None:
    """Raise ValueError where levels rise: a polynomial in r is then extrapolated over steps that
    each are larger than all before, and its weights grow without bound.
    """
    if levels.rising:
        raise ValueError(
            f"solver is {name}, which extrapolates in sigma / alpha: its steps grow upwards, and "
            "an inversion by it diverges; take fastguide.ddim, heun, deis, dpmpp_2m or unipc"
        )


def gauss(of: Callable[[float], float], start: float, end: float) -> float:
    """The integral, by Gauss and Legendre's rule of 32 nodes."""
    total = 0.0
    for position, weight in zip(_NODES, _WEIGHTS, strict=True):
        total += weight * of(0.5 * (start + end + (end - start) * position))
    return 0.5 * (end - start) * total


def integrals(
    nodes: Sequence[float],
    start: float,
    end: float,
    of: Callable[[float], float],
    by: Callable[[float], float] = lambda at: at,
) -> list[float]:
    """Integrals from `start` to `end` of each Lagrange polynomial on `nodes`, in the variable `by`
    of what is integrated over, times `of`.
    """

    def polynomial(k: int) -> Callable[[float], float]:
        others = [node for j, node in enumerate(nodes) if j != k]
        return lambda at: of(at) * math.prod((by(at) - o) / (nodes[k] - o) for o in others)

    return [gauss(polynomial(k), start, end) for k in range(len(nodes))]


def adams_step(now: Level, to: Level, gains: Sequence[float]) -> dict[str, float]:
    """y' = y + (r' - r) eps + sum of gains[k] (eps_k - eps) over the history."""
    here = eps(now)
    parts = [
        (to.alpha * gain, combine((1.0, {name: 1.0}), (-1.0, here)))
        for gain, name in zip(gains, _HISTORY, strict=False)
        if gain
    ]
    return combine((1.0, transfer(now, to)), *parts)


def history(now: Level, known: int, order: int) -> dict[str, Map]:
    """The history moves on by one: `known` entries of it are filled."""
    keep: dict[str, Map] = {_HISTORY[0]: eps(now)} if order > 1 else {}
    for j in range(1, min(known + 1, order - 1)):
        keep[_HISTORY[j]] = {_HISTORY[j - 1]: 1.0}
    return keep


@dataclass(frozen=True)
class _Polynomial:
    """In which variable of the level polynomials are, and over which they are integrated: the
    integral over r = sigma / alpha has the `slope` dr there.
    """

    variable: Callable[[Level], float]
    over: Callable[[float], float] = math.log
    slope: Callable[[float], float] = math.exp
    by: Callable[[float], float] = lambda at: at


def _multistep(
    levels: Levels,
    order: int,
    polynomial: _Polynomial,
    to_data: bool,
    lower_order_final: bool = False,
) -> Iterator[Update]:
    """Adams-Bashforth steps with polynomials through the last evaluations; without `to_data` the
    step to the data is of order 1.
    """
    if order not in (1, 2, 3, 4):
        raise ValueError(f"order is {order}, but it should be 1, 2, 3 or 4")
    before = int(order) - 1
    past: list[Level] = []  # of the evaluations before, newest first; pure noise has none
    steps = list(levels.steps())
    for i, (now, to) in enumerate(steps):
        gains: list[float] = []
        used = min(before, len(steps) - i - 1) if lower_order_final or levels.rising else before
        if past and used and (to_data or to.sigma > 0.0) and to.alpha > 0.0:
            nodes = [polynomial.variable(level) for level in (now, *past[:used])]
            ends = polynomial.over(now.ratio), polynomial.over(to.ratio)
            gains = integrals(nodes, *ends, polynomial.slope, polynomial.by)
        known = min(len(past), before)
        yield Update(now, adams_step(now, to, gains[1:]), history(now, known, before + 1))
        past = [now, *past] if now.alpha > 0.0 else []


_IN_RATIO = _Polynomial(lambda level: level.ratio, lambda r: r, lambda _: 1.0)


@Configured
def lms(levels: Levels, order: int = 4) -> Iterator[Update]:
    """Linear multistep in r (Adams-Bashforth with unequal steps; k-diffusion's LMS).

    The run starts with steps of order 1, 2, 3, which limit the whole to order 2. Not for inversion.
    """
    if order != 1:
        falling(levels, "lms")
    yield from _multistep(levels, order, _IN_RATIO, to_data=True)


@Configured
def deis(
    levels: Levels, order: int = 3, lower_order_final: bool = False, over: str = "log_rho"
) -> Iterator[Update]:
    """DEIS (Zhang and Chen 2022) with polynomials `over` "log_rho", log r; "rho", r; or "t", the
    process's time (tAB). The first step and the last, to the data, are of order 1.
    `lower_order_final` as for `dpmpp_2m`. For inversion only in log r.
    """
    known = {
        "log_rho": _Polynomial(lambda level: math.log(level.ratio)),
        "rho": _IN_RATIO,
        "t": _Polynomial(
            lambda level: level.t, by=lambda at: levels.process.at_ratio(math.exp(at)).t
        ),
    }
    if over not in known:
        raise ValueError(f"over is {over!r}, but it should be 't', 'rho' or 'log_rho'")
    if over != "log_rho":
        falling(levels, f"deis over {over}")
    yield from _multistep(levels, order, known[over], False, lower_order_final)
