"""Spacings in sigma, meaning sigma / alpha on every process, from `sigma_max` to `sigma_min`.

The bounds default to the process's own range. That of flow is 0 to inf: it takes 0.002 and 80
instead. VP with zero terminal SNR ends at inf too: it starts at timestep T - 2, where the signal is
about as weak.
"""

from __future__ import annotations

import math

from fastguide.common.options import Configured
from fastguide.process import Flow, Process
from fastguide.spacing.levels import Levels


def bounds(
    process: Process, sigma_min: float | None, sigma_max: float | None
) -> tuple[float, float]:
    """(low, high) of sigma / alpha: as given, or the defaults above.

    Raises:
        ValueError: not 0 < low < high < inf.
    """
    low, high = 0.002, 80.0
    if not isinstance(process, Flow):
        low, high = process.level(process.t_min).ratio, process.level(process.t_max).ratio
        if math.isinf(high):
            high = process.level(process.t_max - 1.0).ratio
    low = low if sigma_min is None else sigma_min
    high = high if sigma_max is None else sigma_max
    if not 0.0 < low < high < math.inf:
        raise ValueError(f"sigma_min, sigma_max are {low}, {high}, but 0 < sigma_min < sigma_max")
    return low, high


@Configured
def karras(
    process: Process,
    steps: int,
    rho: float = 7.0,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> Levels:
    """sigma_i^(1/rho) evenly from sigma_max to sigma_min (EDM, eq. 5), sigma meaning sigma / alpha.

    The bounds default to the process's own range; for Flow, whose range is 0 to inf, to 0.002 and
    80.
    """
    _check_rho(rho)
    low, high = bounds(process, sigma_min, sigma_max)
    top, bottom = high ** (1 / rho), low ** (1 / rho)
    ramp = [top + (bottom - top) * i / (steps - 1) for i in range(1, steps)]
    return Levels.from_sigmas(process, [high, *(r**rho for r in ramp)])


@Configured
def exponential(
    process: Process, steps: int, sigma_min: float | None = None, sigma_max: float | None = None
) -> Levels:
    """log sigma evenly from sigma_max to sigma_min (k-diffusion): evenly in log(alpha / sigma), the
    time of DPM-Solver (Lu et al. 2022, "logSNR").

    Bounds as for karras, whose limit for a large rho this is.
    """
    return polyexponential.run(process, steps, 1.0, sigma_min, sigma_max)


@Configured
def polyexponential(
    process: Process,
    steps: int,
    rho: float = 1.0,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> Levels:
    """log sigma = log sigma_min + u^rho log(sigma_max / sigma_min), u evenly from 1 to 0
    (k-diffusion); rho 1 is exponential. Bounds as for karras.
    """
    _check_rho(rho)
    low, high = bounds(process, sigma_min, sigma_max)
    span = math.log(high / low)
    ramp = [(1.0 - i / (steps - 1)) ** rho for i in range(1, steps)]
    return Levels.from_sigmas(process, [high, *(low * math.exp(span * u) for u in ramp)])


@Configured
def kl_optimal(
    process: Process, steps: int, sigma_min: float | None = None, sigma_max: float | None = None
) -> Levels:
    """arctan sigma evenly from that of sigma_max to that of sigma_min: what is best for a Gaussian
    of variance 1 (Sabour et al. 2024, theorem 3.1). Bounds as for karras.
    """
    low, high = bounds(process, sigma_min, sigma_max)
    top, bottom = math.atan(high), math.atan(low)
    ramp = [top + (bottom - top) * i / (steps - 1) for i in range(1, steps)]
    return Levels.from_sigmas(process, [high, *map(math.tan, ramp)])


def _check_rho(rho: float) -> None:
    if not 0.0 < rho < math.inf:
        raise ValueError(f"rho is {rho}, but it should be positive")
