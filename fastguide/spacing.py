"""Which noise levels a run of N steps visits: N levels of falling noise, and the data after
them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from fastguide.options import Configured
from fastguide.process import EDM, VP, Flow, Level, Process, data_level


@dataclass(frozen=True)
class Levels:
    """The levels of a run, noisiest first, the last one usually the data; and their process."""

    process: Process
    points: tuple[Level, ...]

    def __post_init__(self) -> None:
        if len(self.points) < 2:
            raise ValueError(f"levels has {len(self.points)} points, but a run needs 2 or more")
        for now, to in pairwise(self.points):
            if not to.ratio < now.ratio:
                raise ValueError(f"levels should fall in sigma / alpha, but {to} follows {now}")

    def steps(self) -> Iterator[tuple[Level, Level]]:
        """(now, to) for each step."""
        return pairwise(self.points)


def _times(process: Process, times: Sequence[float]) -> Levels:
    points = [process.level(t) for t in times]
    if points[-1].sigma > 0.0:
        points.append(data_level())
    return Levels(process, tuple(points))


def _ratios(process: Process, ratios: Sequence[float]) -> Levels:
    points = [process.at_ratio(ratio) for ratio in ratios]
    return Levels(process, (*points, data_level()))


def _discrete(process: Process, spacing: str, steps: int) -> int:
    if not isinstance(process, VP):
        raise ValueError(
            f"spacing is {spacing!r}, which counts training timesteps, but process is {process}; "
            "use linspace or karras"
        )
    if steps > process.timesteps:
        raise ValueError(f"steps is {steps}, but the process has {process.timesteps} timesteps")
    return process.timesteps


@Configured
def leading(process: Process, steps: int, offset: int = 0) -> Levels:
    """t = i floor(T / N) + offset, i = N-1 ... 0: DDIM's and Stable Diffusion's (offset 1)."""
    stride = _discrete(process, "leading", steps) // steps
    return _times(process, [float(i * stride + int(offset)) for i in reversed(range(steps))])


@Configured
def trailing(process: Process, steps: int) -> Levels:
    """t = round(T - i T / N) - 1, i = 0 ... N-1: starts at the last timestep (Lin et al. 2023)."""
    total = _discrete(process, "trailing", steps)
    return _times(process, [float(round(total - i * total / steps) - 1) for i in range(steps)])


@Configured
def linspace(process: Process, steps: int) -> Levels:
    """N levels evenly in t: VP from T - 1 to 0, flow from 1 to 1 / N, EDM in sigma."""
    high, low = process.t_max, process.t_min
    if isinstance(process, Flow):
        return _times(process, [1.0 - i / steps for i in range(steps)] + [0.0])
    if steps == 1:
        return _times(process, [high])
    return _times(process, [high + (low - high) * i / (steps - 1) for i in range(steps)])


@Configured
def shifted(process: Process, steps: int, shift: float = 3.0) -> Levels:
    """Flow: t = s u / (1 + (s - 1) u), u = 1 - i / N (Esser et al. 2024); 1 is linspace."""
    if not isinstance(process, Flow):
        raise ValueError(f"spacing is 'shifted', which is for Flow, but process is {process}")
    if not 0.0 < shift < math.inf:
        raise ValueError(f"shift is {shift}, but it should be positive")
    evenly = [1.0 - i / steps for i in range(steps)] + [0.0]
    return _times(process, [shift * u / (1.0 + (shift - 1.0) * u) for u in evenly])


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
    if rho <= 0.0:
        raise ValueError(f"rho is {rho}, but it should be positive")
    bounded = not isinstance(process, Flow)
    high = (
        (process.level(process.t_max).ratio if bounded else 80.0)
        if sigma_max is None
        else sigma_max
    )
    low = (
        (process.level(process.t_min).ratio if bounded else 0.002)
        if sigma_min is None
        else sigma_min
    )
    if not 0.0 < low < high:
        raise ValueError(f"sigma_min, sigma_max are {low}, {high}, but 0 < sigma_min < sigma_max")
    if steps == 1:
        return _ratios(process, [high])
    top, bottom = high ** (1 / rho), low ** (1 / rho)
    ramp = [top + (bottom - top) * i / (steps - 1) for i in range(steps)]
    return _ratios(process, [high, *(r**rho for r in ramp[1:])])


SPACINGS = {spacing.name: spacing for spacing in (leading, trailing, linspace, shifted, karras)}


def default_spacing(process: Process) -> Configured[Levels]:
    """trailing for VP, karras for EDM, linspace for flow."""
    return trailing if isinstance(process, VP) else karras if isinstance(process, EDM) else linspace


def make_levels(process: Process, steps: int, spacing: Configured[Levels] | None = None) -> Levels:
    """The levels of `steps` steps.

    Raises:
        ValueError: steps < 1, or a spacing that the process does not have.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps is {steps!r}, but it should be an int of 1 or more")
    return (spacing or default_spacing(process)).run(process, steps)
