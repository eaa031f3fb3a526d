"""How a guidance weight moves over a run: factors, or scales, one value per evaluation.

All read the levels of the evaluations themselves, so Heun's second stage is judged by its own
level.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from fastguide.process import Level

Over = Literal["t", "sigma"]
CLOSE = 1e-6  # relative: levels that were rounded to fp32 on their way are off by 6e-8


class Schedule(Protocol):
    """Gives one value per evaluation from the levels of all evaluations, in order."""

    def values(self, levels: Sequence[Level]) -> list[float]: ...


def _position(level: Level, over: Over) -> float:
    return level.t if over == "t" else level.ratio


def _check_over(over: str) -> None:
    if over not in ("t", "sigma"):
        raise ValueError(f"over is {over!r}, but it should be 't' or 'sigma'")


def _progress(levels: Sequence[Level], over: Over) -> list[float]:
    """0 at the first evaluation, 1 at the last, linear in t or sigma / alpha between."""
    if over == "sigma" and math.isinf(levels[0].ratio):
        raise ValueError(
            "over is 'sigma', but the run starts at alpha 0, where sigma is inf; use 't'"
        )
    first, last = _position(levels[0], over), _position(levels[-1], over)
    if first == last:
        return [0.0] * len(levels)
    return [(first - _position(level, over)) / (first - last) for level in levels]


@dataclass(frozen=True)
class constant:
    """The same value at every evaluation."""

    value: float = 1.0

    def values(self, levels: Sequence[Level]) -> list[float]:
        return [self.value] * len(levels)


@dataclass(frozen=True)
class linear:
    """From `start` at the first evaluation to `end` at the last, linear in t (or sigma)."""

    start: float
    end: float
    over: Over = "t"

    def __post_init__(self) -> None:
        _check_over(self.over)

    def values(self, levels: Sequence[Level]) -> list[float]:
        return [self.start + (self.end - self.start) * p for p in _progress(levels, self.over)]


@dataclass(frozen=True)
class cosine:
    """`(1 - cos(pi p^power)) / 2`, p from 0 at the first evaluation to 1 at the last: power-cosine,
    as in MDT (Gao et al. 2023) and REG (Gao et al. 2025). No guidance first, all of it last."""

    power: float = 1.0
    over: Over = "t"

    def __post_init__(self) -> None:
        _check_over(self.over)
        if not 0.0 < self.power < math.inf:
            raise ValueError(f"power is {self.power}, but it should be positive")

    def values(self, levels: Sequence[Level]) -> list[float]:
        progress = _progress(levels, self.over)
        return [0.5 * (1.0 - math.cos(math.pi * p**self.power)) for p in progress]


@dataclass(frozen=True)
class interval:
    """1 where `low <= sigma <= high` (or t), else 0 (Kynkaanniemi et al. 2024).

    sigma is sigma / alpha, EDM's sigma. Both ends belong to it, up to one part in 1e6, as levels
    are rounded. Outside, the negative rows are not computed at all.
    """

    low: float
    high: float
    over: Over = "sigma"

    def __post_init__(self) -> None:
        _check_over(self.over)
        if not self.low <= self.high:
            raise ValueError(
                f"low, high are {self.low}, {self.high}, but low should not exceed high"
            )

    def values(self, levels: Sequence[Level]) -> list[float]:
        low, high = self.low - CLOSE * abs(self.low), self.high + CLOSE * abs(self.high)
        return [float(low <= _position(at, self.over) <= high) for at in levels]


def values_of(
    schedule: Schedule | Callable[[Level], float], levels: Sequence[Level]
) -> list[float]:
    """One value per level, from a schedule or from any function of a level."""
    if hasattr(schedule, "values"):
        return [float(value) for value in schedule.values(levels)]
    return [float(schedule(level)) for level in levels]
