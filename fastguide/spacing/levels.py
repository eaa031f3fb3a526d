"""The levels of a run, whoever chose them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from fastguide.common.checks import check_number, shown
from fastguide.process import EDM, Level, Process, data_level

ROUNDING = 0.01  # published lists of sigmas are rounded to 2 or 3 digits


@dataclass(frozen=True)
class Levels:
    """The levels of a run, noisiest first, the last one usually the data; and their process. Those
    of an inversion are `rising`.

    `start` is the standard deviation of the noise that x begins as; by default the process's own.
    """

    process: Process
    points: tuple[Level, ...]
    start: float | None = None
    rising: bool = False

    def __post_init__(self) -> None:
        if len(self.points) < 2:
            raise ValueError(f"levels has {len(self.points)} points, but a run needs 2 or more")
        for now, to in pairwise(self.points):
            high, low = (to, now) if self.rising else (now, to)
            if not low.ratio < high.ratio:
                way = "rise" if self.rising else "fall"
                raise ValueError(f"levels should {way} in sigma / alpha, but {to} follows {now}")

    def later(self, strength: float | Level) -> Levels:
        """The part of the run that begins later: its last whole steps, a share `strength` of them,
        or what lies below a level, which then comes first.

        Raises:
            ValueError: nothing is left, or not a share in (0, 1].
        """
        if isinstance(strength, Level):
            below = tuple(point for point in self.points if point.ratio < strength.ratio)
            if not below or strength.ratio > self.points[0].ratio:
                raise ValueError(
                    f"strength is {strength}, but it should lie between the levels of the run, "
                    f"{self.points[0]} to {self.points[-1]}"
                )
            return Levels(self.process, (strength, *below))
        check_number("strength", strength)
        steps = len(self.points) - 1
        kept = int(steps * strength + 1e-9) if 0.0 < strength <= 1.0 else 0
        if kept == 0:
            raise ValueError(
                f"strength is {strength}, but it should be a level or a share in (0, 1] of the "
                f"{steps} steps that makes one or more"
            )
        return Levels(self.process, self.points[steps - kept :])

    def upward(self) -> Levels:
        """The same levels from the least noisy one to the noisiest; the data, whose noise no
        network knows, are left out.

        Raises:
            ValueError: fewer than two have noise.
        """
        noisy = [point for point in self.points if point.sigma > 0.0]
        if len(noisy) < 2:
            raise ValueError(
                f"levels has {len(noisy)} points with noise, but an inversion needs 2 or more"
            )
        return Levels(self.process, tuple(reversed(noisy)), rising=True)

    def steps(self) -> Iterator[tuple[Level, Level]]:
        """(now, to) for each step."""
        return pairwise(self.points)

    @classmethod
    def from_times(cls, process: Process, times: Iterable[float]) -> Levels:
        """The levels at the falling `times`, in the units of `process`, and the data after them.

        Flow and EDM reach the data at t = 0, which may end the list; VP's t = 0 still has noise.

        Raises:
            ValueError: times that do not fall, that the process does not have, or none but the
                data.
        """
        return cls(process, _points("times", times, process.level))

    @classmethod
    def from_sigmas(cls, process: Process, sigmas: Iterable[float]) -> Levels:
        """The levels whose sigma / alpha are the falling `sigmas`, and the data after them.

        This is the sigma of EDM and of k-diffusion; 0, the data, may end the list, and inf is pure
        noise. Published lists are rounded, so up to 1 % outside the trained range is taken as its
        end.

        Raises:
            ValueError: sigmas that do not fall, that the process does not have, or none but the
                data.
        """
        low, high = process.level(process.t_min).ratio, process.level(process.t_max).ratio
        if isinstance(process, EDM):  # a network of log(sigma) has no hard ends
            low, high = 0.0, math.inf

        def level(sigma: float) -> Level:
            if sigma and not low * (1.0 - ROUNDING) <= sigma <= high * (1.0 + ROUNDING):
                raise ValueError(f"sigma / alpha should be 0 or lie in [{low:g}, {high:g}]")
            return process.at_ratio(sigma)

        return cls(process, _points("sigmas", sigmas, level))


def _points(
    name: str, given: Iterable[float], level: Callable[[float], Level]
) -> tuple[Level, ...]:
    """The levels of falling values, each named in its error, and the data after them."""
    if not isinstance(given, Iterable) or isinstance(given, (str, bytes)):
        raise TypeError(f"{name} is {shown(given)}, but it should be falling numbers")
    values = tuple(given)
    for i, value in enumerate(values):
        if not (isinstance(value, float) and value == math.inf):  # pure noise
            check_number(f"{name}[{i}]", value)
    values = tuple(map(float, values))
    points: list[Level] = []
    for i, value in enumerate(values):
        if i and not value < values[i - 1]:
            raise ValueError(f"{name}[{i}] is {value}, but it should be below {values[i - 1]}")
        try:
            points.append(level(value))
        except ValueError as error:
            raise ValueError(f"{name}[{i}] is {value}: {error}") from None
    if not points or points[0].sigma == 0.0:
        raise ValueError(f"{name} is {values}, but a run needs a level with noise")
    if points[-1].sigma > 0.0:
        points.append(data_level())
    return tuple(points)
