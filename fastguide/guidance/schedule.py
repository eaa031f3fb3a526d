"""How a guidance weight moves over a run: factors, or scales, one value per evaluation.

All read the levels of the evaluations themselves, so Heun's second stage is judged by its own
level.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

from fastguide.common.checks import check_name, check_number, shown
from fastguide.process import Level

Over = Literal["t", "sigma"]


class Schedule(Protocol):
    """Gives one value per evaluation from the levels of all evaluations, in order."""

    def values(self, levels: Sequence[Level]) -> list[float]: ...


def _position(level: Level, over: Over) -> float:
    return level.t if over == "t" else level.ratio


def _check_over(over: str) -> None:
    check_name("over", over, get_args(Over))


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

    def __post_init__(self) -> None:
        check_number("value", self.value)

    def values(self, levels: Sequence[Level]) -> list[float]:
        return [self.value] * len(levels)


@dataclass(frozen=True)
class linear:
    """From `start` at the first evaluation to `end` at the last, linear in t (or sigma)."""

    start: float
    end: float
    over: Over = "t"

    def __post_init__(self) -> None:
        check_number("start", self.start)
        check_number("end", self.end)
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
        check_number("power", self.power, 0.0, open_=True)

    def values(self, levels: Sequence[Level]) -> list[float]:
        progress = _progress(levels, self.over)
        return [0.5 * (1.0 - math.cos(math.pi * p**self.power)) for p in progress]


@dataclass(frozen=True)
class interval:
    """1 where `low <= sigma <= high` (or t), else 0 (Kynkaanniemi et al. 2024).

    sigma is sigma / alpha, EDM's sigma. Outside, the negative rows are not computed at all.
    """

    low: float
    high: float
    over: Over = "sigma"

    def __post_init__(self) -> None:
        _check_over(self.over)
        for name in ("low", "high"):
            bound = getattr(self, name)
            if not (isinstance(bound, float) and math.isinf(bound)):
                check_number(name, bound)
        if not self.low <= self.high:
            raise ValueError(
                f"low, high are {self.low}, {self.high}, but low should not exceed high"
            )

    def values(self, levels: Sequence[Level]) -> list[float]:
        return [float(self.low <= _position(at, self.over) <= self.high) for at in levels]


def is_schedule(value: object) -> bool:
    """Whether `value` is a schedule or any function of a level: neither a class of schedules, nor
    a dict, which has `values` of another kind.
    """
    if isinstance(value, (type, Mapping)):
        return False
    return callable(value) or callable(getattr(value, "values", None))


def values_of(
    schedule: Schedule | Callable[[Level], float], levels: Sequence[Level]
) -> list[float]:
    """One value per level, from a schedule or from any function of a level.

    Raises:
        TypeError, ValueError: it gives something else than a number for each.
    """
    given = getattr(schedule, "values", None)
    found = [schedule(at) for at in levels] if given is None else list(given(levels))  # type: ignore[operator]
    if len(found) != len(levels):
        raise ValueError(f"schedule gives {len(found)} values, but there are {len(levels)} levels")
    for value, level in zip(found, levels, strict=True):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        except (TypeError, ValueError):
            raise TypeError(
                f"schedule gives {shown(value)} at {level}, but it should be a number"
            ) from None
        if not math.isfinite(number):
            raise ValueError(f"schedule gives {shown(value)} at {level}, which is not finite")
    return [float(value) for value in found]
