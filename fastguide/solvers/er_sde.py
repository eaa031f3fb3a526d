"""ER-SDE-Solver (Cui et al. 2023): reverse SDEs between the ODE and beyond the usual SDE, by a
function phi of r = sigma / alpha.

With y = x / alpha: `y' = phi(r') / phi(r) y + (1 - phi(r') / phi(r)) D + ... + sqrt(r'^2 - r^2
(phi(r') / phi(r))^2) n`, where D is a Taylor polynomial in r through the images before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

from fastguide.common.options import Configured
from fastguide.solvers.adams import falling, gauss
from fastguide.solvers.update import Map, Update, combine, transfer
from fastguide.spacing import Levels

Phi = Callable[[float], float]

SCALERS: dict[str, Phi] = {
    "er_sde": lambda r: r * (math.exp(r**0.3) + 10.0),
    "ode": lambda r: r,
    "sde": lambda r: r * r,
}


@Configured
def er_sde(
    levels: Levels,
    order: int = 3,
    noise_scaler: str | Phi = "er_sde",
    s_noise: float = 1.0,
    points: int = 0,
) -> Iterator[Update]:
    """ER-SDE-Solver of `order` 1 to 3 stages, one evaluation a step.

    `noise_scaler` is phi: "er_sde" is the authors' `r (e^(r^0.3) + 10)`, "ode" r, without noise,
    "sde" r^2, the reverse SDE; or any function with r^2 / phi(r)^2 not rising. Integrals of 1 / phi
    are exact; `points` takes left sums of as many, the authors' 200.
    """
    if order not in (1, 2, 3):
        raise ValueError(f"order is {order}, but it should be 1, 2 or 3")
    if isinstance(noise_scaler, str) and noise_scaler not in SCALERS:
        known = ", ".join(repr(name) for name in SCALERS)
        raise ValueError(f"noise_scaler is {noise_scaler!r}, but it should be one of {known}")
    if order != 1:
        falling(levels, "er_sde")
    phi = SCALERS[noise_scaler] if isinstance(noise_scaler, str) else noise_scaler
    past: list[float] = []  # r of the evaluations before, newest first
    for now, to in levels.steps():
        keep: dict[str, Map] = {"previous": {"denoised": 1.0}} if order > 1 else {}
        if order > 2 and past:
            keep["older"] = {"previous": 1.0}
        if now.alpha * to.alpha * to.sigma == 0.0:
            fresh = now.alpha == 0.0 and to.sigma > 0.0 and _noise(math.inf, to.ratio, phi) > 0.0
            x = transfer(now, to, 0.0 if fresh else None)
            x = {**x, "noise": s_noise * to.sigma} if fresh and s_noise else x
            yield Update(now, x, keep, over=(now, to))
            past = []
            continue
        r, end = now.ratio, to.ratio
        ratio, span = phi(end) / phi(r), end - r
        parts: list[tuple[float, Map]] = [
            (to.alpha / now.alpha * ratio, {"x": 1.0}),
            (to.alpha * (1.0 - ratio), {"denoised": 1.0}),
        ]
        if past and order > 1:
            slope = {"denoised": 1.0 / (r - past[0]), "previous": -1.0 / (r - past[0])}
            total = _integral(phi, lambda at: 1.0, end, r, points)
            parts.append((to.alpha * (span + total * phi(end)), slope))
            if len(past) > 1 and order > 2:
                gap = past[0] - past[1]
                older = {"previous": 1.0 / gap, "older": -1.0 / gap}
                bend = combine((1.0, slope), (-1.0, older))
                total = _integral(phi, partial(_behind, r), end, r, points)
                gain = 0.5 * span * span + total * phi(end)
                parts.append((to.alpha * gain * 2.0 / (r - past[1]), bend))
        std = s_noise * to.alpha * _noise(r, end, phi)
        x = combine(*parts, (1.0, {"noise": std} if std else {}))
        yield Update(now, x, keep, over=(now, to))
        past = [r, *past[:1]]


def _noise(r: float, end: float, phi: Phi) -> float:
    """sqrt(r'^2 - r^2 (phi(r') / phi(r))^2), of r = inf in the limit."""
    kept = phi(end) * (r / phi(r) if math.isfinite(r) else 1e8 / phi(1e8))
    left = (end - kept) * (end + kept)
    return math.sqrt(left) if left > 1e-12 * end * end else 0.0


def _behind(r: float, at: float) -> float:
    return at - r


def _integral(
    phi: Phi, of: Callable[[float], float], low: float, high: float, points: int
) -> float:
    """Of `of` / phi over r, exactly or by left sums."""
    if points:
        size = (high - low) / points
        ats = [low + i * size for i in range(int(points))]
        return size * sum(of(at) / phi(at) for at in ats)
    logs = math.log(low), math.log(high)
    return gauss(lambda log: math.exp(log) * of(math.exp(log)) / phi(math.exp(log)), *logs)
