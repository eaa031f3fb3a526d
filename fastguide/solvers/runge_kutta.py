"""Runge-Kutta methods on x / alpha over sigma / alpha: DEIS's rhoRK (Zhang and Chen 2022)."""

from __future__ import annotations

from collections.abc import Iterator

from fastguide.common.options import Configured
from fastguide.solvers.stages import apart, staged, tableau
from fastguide.solvers.update import Update, transfer
from fastguide.spacing import Levels

Tableau = tuple[tuple[float, ...], ...]

# row j: of the slopes so far, in what leads to the next evaluation, and in the last to the end
RUNGE_KUTTA: dict[str, Tableau] = {
    "midpoint": ((0.5,), (0.0, 1.0)),
    "heun": ((1.0,), (0.5, 0.5)),
    "kutta3": ((0.5,), (-1.0, 2.0), (1 / 6, 4 / 6, 1 / 6)),
    "rk4": ((0.5,), (0.0, 0.5), (0.0, 0.0, 1.0), (1 / 6, 2 / 6, 2 / 6, 1 / 6)),
}


@Configured
def rho_rk(levels: Levels, method: str = "heun") -> Iterator[Update]:
    """DEIS's rhoRK: `method` "midpoint" or "heun" of order 2, "kutta3" of order 3, "rk4" of order
    4, with as many evaluations a step; one for the step to the data.
    """
    if method not in RUNGE_KUTTA:
        known = ", ".join(repr(name) for name in RUNGE_KUTTA)
        raise ValueError(f"method is {method!r}, but it should be one of {known}")
    weights = RUNGE_KUTTA[method]
    for now, to in levels.steps():
        if not apart(now, to):
            yield Update(now, transfer(now, to))
            continue
        span = to.ratio - now.ratio
        inner = [levels.process.at_ratio(now.ratio + sum(row) * span) for row in weights[:-1]]
        at = [
            now,
            *(to if sum(row) == 1.0 else mid for row, mid in zip(weights, inner, strict=False)),
        ]
        yield from staged(at, *tableau(at, to, weights))
