"""How a guidance weight moves over a run: factors, or scales, one value per evaluation.

All read the levels of the evaluations themselves, so Heun's second stage is judged by its own
level.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Literal, Protocol, get_args

from fastguide.common.checks import check_name, check_number, shown
from fastguide.process import Level

Over = Literal["t", "sigma", "step"]
CLOSE = 1e-6  # relative: levels that were rounded to fp32 on their way are off by 6e-8


class Schedule(Protocol):
    """Gives one value per evaluation from the levels of all evaluations, in order."""

    def values(self, levels: Sequence[Level]) -> list[float]: ...


def _positions(levels: Sequence[Level], over: Over) -> list[float]:
    """Where each evaluation lies: its t, its sigma / alpha, or the share of the steps before it."""
    if over == "step":
        return shares(levels)
    return [level.t if over == "t" else level.ratio for level in levels]


def shares(levels: Sequence[Level]) -> list[float]:
    """i / N for an evaluation of step i = 0 ... N - 1: how many of all levels, each counted once,
    are noisier. So an evaluation within a step lies between two steps.
    """
    falling = sorted({level.ratio for level in levels}, reverse=True)
    return [falling.index(level.ratio) / len(falling) for level in levels]


def _check_over(over: str) -> None:
    check_name("over", over, get_args(Over))


def _check_span(span: tuple[float, float] | None) -> None:
    if span is None:
        return
    if not isinstance(span, (tuple, list)):
        raise TypeError(f"span is {shown(span)}, but it should be two different finite numbers")
    for i, value in enumerate(span):
        check_number(f"span[{i}]", value)
    if len(span) != 2 or span[0] == span[1]:
        raise ValueError(f"span is {span}, but it should be two different finite numbers")


def _progress(
    levels: Sequence[Level], over: Over, span: tuple[float, float] | None = None
) -> list[float]:
    """0 at the first evaluation, 1 at the last, linear in t, sigma / alpha or steps between; or 0
    and 1 where those are the numbers of `span`.
    """
    if over == "sigma" and math.isinf(levels[0].ratio):
        raise ValueError(
            "over is 'sigma', but the run starts at alpha 0, where sigma is inf; use 't'"
        )
    positions = _positions(levels, over)
    first, last = (positions[0], positions[-1]) if span is None else span
    if first == last:
        return [0.0] * len(levels)
    return [(first - position) / (first - last) for position in positions]


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
    """From `start` at the first evaluation to `end` at the last, linear in t (or sigma, or steps).

    `span` names the positions that have `start` and `end` instead. REG's code for DiT, asked for
    (a, b), runs `linear(2 a - b, a, span=(1000, 0))`.
    """

    start: float
    end: float
    over: Over = "t"
    span: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        check_number("start", self.start)
        check_number("end", self.end)
        _check_over(self.over)
        _check_span(self.span)

    def values(self, levels: Sequence[Level]) -> list[float]:
        progress = _progress(levels, self.over, self.span)
        return [self.start + (self.end - self.start) * p for p in progress]


@dataclass(frozen=True)
class cosine:
    """`(1 - cos(pi p^power)) / 2`, p from 0 at the first evaluation to 1 at the last: power-cosine,
    as in MDT (Gao et al. 2023) and REG (Gao et al. 2025). No guidance first, all of it last.

    `span` names the positions where p is 0 and 1 instead: (1000, 0) in MDT's and REG's code for
    DiT, `over="sigma", span=(sigma_max, 0)` in REG's for EDM.
    """

    power: float = 1.0
    over: Over = "t"
    span: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        _check_over(self.over)
        check_number("power", self.power, 0.0, open_=True)
        _check_span(self.span)

    def values(self, levels: Sequence[Level]) -> list[float]:
        progress = [max(p, 0.0) for p in _progress(levels, self.over, self.span)]
        return [0.5 * (1.0 - math.cos(math.pi * p**self.power)) for p in progress]


@dataclass(frozen=True)
class interval:
    """1 where `low <= sigma <= high` (or t, or the share of the steps), else 0 (Kynkaanniemi et al.
    2024).

    sigma is sigma / alpha, EDM's sigma. Both ends belong to it, up to one part in 1e6, as levels
    are rounded. Outside, the negative rows are not computed at all.
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
        low, high = self.low - CLOSE * abs(self.low), self.high + CLOSE * abs(self.high)
        return [float(low <= position <= high) for position in _positions(levels, self.over)]


def is_schedule(value: object) -> bool:
    """Whether `value` is a schedule or any function of a level: neither a class of schedules, nor
    a dict, which has `values` of another kind.
    """
    if isinstance(value, (type, Mapping)):
        return False
    return callable(value) or callable(getattr(value, "values", None))


def check_schedule(name: str, value: object) -> None:
    """Raise TypeError unless `value` is a schedule, any function of a level, or None."""
    if value is None or is_schedule(value):
        return
    hint = ""
    if isinstance(value, type):
        hint = f"; give it its numbers, as in {value.__name__}(...)"
    elif isinstance(value, str):
        hint = f"; fastguide.parse reads text, as in fastguide.parse('cfg:3,{name}={value}')"
    elif isinstance(value, Real) and not isinstance(value, bool):
        hint = f"; constant({value!r}) is the same factor everywhere"
    raise TypeError(
        f"{name} is {shown(value)}, but it should be a schedule such as interval(0.3, 2.9), or a "
        f"function of a Level{hint}"
    )


def values_of(
    schedule: Schedule | Callable[[Level], float] | Sequence[float], levels: Sequence[Level]
) -> list[float]:
    """One value per level, from a schedule, from any function of a level, or from a list of one
    value per step.

    Raises:
        TypeError, ValueError: it gives something else than a number for each, or the list has
            another length.
    """
    if isinstance(schedule, (list, tuple)):
        return _listed(schedule, levels)
    given = getattr(schedule, "values", None)
    found = [schedule(at) for at in levels] if given is None else list(given(levels))  # type: ignore[operator]
    if len(found) != len(levels):
        raise ValueError(f"schedule gives {len(found)} values, but there are {len(levels)} levels")
    numbers = []
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
        numbers.append(number)
    return numbers


def _listed(given: Sequence[float], levels: Sequence[Level]) -> list[float]:
    count = len({level.ratio for level in levels})
    if not given or count % len(given):  # evaluations within a step have levels of their own
        raise ValueError(
            f"a schedule has {len(given)} values, but the run evaluates at {count} levels: one "
            "value a step"
        )
    return [float(given[int(share * len(given) + 1e-9)]) for share in shares(levels)]
