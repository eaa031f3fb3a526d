"""Spacings at the quantiles of a distribution of levels."""

from __future__ import annotations

import math

from fastguide.common.options import Configured
from fastguide.process import EDM, Flow, Process
from fastguide.spacing.levels import Levels
from fastguide.spacing.sigmas import bounds


@Configured
def beta(
    process: Process,
    steps: int,
    a: float = 0.6,
    b: float = 0.6,
    over: str = "t",
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> Levels:
    """Quantiles q of a Beta(a, b) distribution (Lee et al. 2024, "Beta Sampling is All You Need"):
    a, b < 1 crowd both ends. Needs scipy.

    `over` "t", as in ComfyUI: q at 1 - i / N, i = 0 ... N-1. VP visits round(q (T - 1)), each
    timestep once, so large N give fewer steps; flow t = q; EDM is even in log sigma, its network's
    time: `sigma_min (sigma_max / sigma_min)^q`.

    `over` "sigma", as in diffusers: q at 1 - i / (N - 1), and sigma / alpha is `sigma_min + q
    (sigma_max - sigma_min)`, bounds as for karras. (For flow, diffusers calls t sigma.)

    Raises:
        ImportError: scipy is missing.
    """
    for name, value in (("a", a), ("b", b)):
        if not 0.0 < value < math.inf:
            raise ValueError(f"{name} is {value}, but it should be positive")
    if over == "sigma":
        low, high = bounds(process, sigma_min, sigma_max)
        levels = _quantiles([1.0 - i / max(steps - 1, 1) for i in range(steps)], a, b)
        return Levels.from_sigmas(process, (low + q * (high - low) for q in levels))
    if over != "t":
        raise ValueError(f"over is {over!r}, but it should be 't' or 'sigma'")
    for name, bound in (("sigma_min", sigma_min), ("sigma_max", sigma_max)):
        if bound is not None:
            raise ValueError(f"{name} is {bound}, but it is read only where over is 'sigma'")
    levels = _quantiles([1.0 - i / steps for i in range(steps)], a, b)
    if isinstance(process, Flow):
        return Levels.from_times(process, levels)
    if isinstance(process, EDM):
        span = math.log(process.sigma_max / process.sigma_min)
        return Levels.from_sigmas(
            process, (process.sigma_max * math.exp(span * (q - 1.0)) for q in levels)
        )
    return Levels.from_times(
        process, dict.fromkeys(float(round(q * process.t_max)) for q in levels)
    )


def _quantiles(shares: list[float], a: float, b: float) -> list[float]:
    try:
        from scipy import stats  # type: ignore[import-untyped]
    except ImportError:
        raise ImportError("spacing 'beta' needs scipy: pip install fastguide[scipy]") from None
    return [float(q) for q in stats.beta.ppf(shares, a, b)]
