"""Solvers that go back up: RePaint's resampling, and restarts.

Parts of a run are done several times; between, noise as the process itself adds it leads from the
end of a part to its start again: `x' = alpha' / alpha x + std n`, `std` that of x' given x.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastguide.common.checks import shown
from fastguide.common.options import Configured
from fastguide.process import Level
from fastguide.solvers.ddim import ddpm, transition_std
from fastguide.solvers.edm import heun
from fastguide.solvers.update import Update
from fastguide.spacing import Levels


def raised(low: Level, high: Level) -> Update:
    """From `low` up to `high`. It is an update of its own: what scales or moves the noise of the
    solver's step, a learned variance or a gradient, does not concern the process.
    """
    return Update(None, {"x": high.alpha / low.alpha, "noise": transition_std(high, low)})


def _named(solver: Configured[Any] | str) -> Configured[Any]:
    """A solver, perhaps by its name.

    Raises:
        TypeError, ValueError: it is none.
    """
    if isinstance(solver, str):
        from fastguide.solvers.names import named  # the table of names has those of this file

        found, spacing = named(solver)
        if spacing is not None:
            raise ValueError(f"solver is {solver!r}, but here it should be one without a spacing")
        return found
    if not isinstance(solver, Configured):
        raise TypeError(
            f"solver is {shown(solver)}, but it should be a solver such as fastguide.ddpm, or its "
            "name"
        )
    return solver


def _again(part: Levels, times: int, solver: Configured[Any]) -> Iterator[Update]:
    """A part of the run `times` times."""
    for number in range(times):
        if number:
            yield raised(part.points[-1], part.points[0])
        yield from solver.run(part)


def _count(name: str, value: float) -> int:
    if value < 1 or value != int(value):
        raise ValueError(f"{name} is {value}, but it should be a whole number, 1 or more")
    return int(value)


@Configured
def resampled(
    levels: Levels, times: int = 10, jump: int = 10, solver: Configured[Any] | str = ddpm
) -> Iterator[Update]:
    """RePaint's resampling (Lugmayr et al. 2022, section 4.2), for runs with `known` pixels: each
    `jump` steps are done `times` times, so that what is sampled comes to fit what is known.

    `solver`, or its name, takes the steps: one whose steps stand alone, as the history of a
    multistep one ends with each part. N times evaluations for one of one a step. Published: 250
    steps, 10 and 10.
    """
    count, size = _count("times", times), _count("jump", jump)
    points, steps = levels.points, _named(solver)
    for start in range(0, len(points) - 1, size):
        part = points[start : start + size + 1]
        again = 1 if part[0].alpha == 0.0 and part[-1].sigma == 0.0 else count
        yield from _again(Levels(levels.process, part), again, steps)


@Configured
def restart(
    levels: Levels,
    times: int = 1,
    t_min: float = 0.06,
    t_max: float = 0.3,
    steps: int = 4,
    solver: Configured[Any] | str = heun,
) -> Iterator[Update]:
    """Restart (Xu et al. 2023, algorithm 1): a run of `solver`, which at the level next to sigma =
    `t_min` goes back up to `t_max` with fresh noise, and down again in `steps` steps of Karras's
    rho 7, `times` times. sigma means sigma / alpha.

    The levels of their CIFAR-10 runs are 0.06 and 0.30; `times` 0 is the solver itself.
    """
    if times < 0 or times != int(times):
        raise ValueError(f"times is {times}, but it should be a whole number, 0 or more")
    if not 0.0 < t_min < t_max:
        raise ValueError(f"t_min, t_max are {t_min}, {t_max}, but 0 < t_min < t_max")
    count, own = _count("steps", steps), _named(solver)
    noisy = [i for i, point in enumerate(levels.points) if i > 0 and point.sigma > 0.0]
    if not noisy or times == 0:
        yield from own.run(levels)
        return
    turn = min(noisy, key=lambda i: abs(levels.points[i].ratio - t_min))
    low, high = levels.points[turn], levels.process.at_ratio(t_max)
    if not high.ratio > low.ratio:
        raise ValueError(f"t_max is {t_max}, but the level next to t_min is {low}")
    top, bottom = high.ratio ** (1 / 7), low.ratio ** (1 / 7)
    ratios = [(top + (bottom - top) * i / count) ** 7 for i in range(1, count)]
    inner = Levels(levels.process, (high, *map(levels.process.at_ratio, ratios), low))
    yield from own.run(Levels(levels.process, levels.points[: turn + 1]))
    yield raised(low, high)
    yield from _again(inner, int(times), own)
    if turn + 1 < len(levels.points):
        yield from own.run(Levels(levels.process, levels.points[turn:]))
