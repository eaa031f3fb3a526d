"""What a run does, apart from the network: all that a plan is made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from numbers import Real
from typing import Any, get_args

from fastguide.common.checks import check_name, shown
from fastguide.common.options import Configured
from fastguide.engine.plan import Noise, Start
from fastguide.engine.threshold import DynamicThreshold
from fastguide.guidance.base import Guidance
from fastguide.model import Model
from fastguide.process import Level, Prediction
from fastguide.solvers import Solver, ddim
from fastguide.solvers.names import Named, named
from fastguide.spacing import Levels, make_levels
from fastguide.spacing.names import spacing_by_name

Bounds = tuple[float, float] | DynamicThreshold | None
Clamp = float | tuple[float, float] | DynamicThreshold | None


@dataclass(frozen=True)
class Usual:
    """How a model is usually run: what holds where the caller names nothing else."""

    levels: Levels
    solver: Solver
    clamp: Bounds = None


@dataclass(frozen=True)
class Course:
    """The arguments of `fastguide.Sampler` with these names; `upward` is its inversion."""

    guidance: Guidance | None
    solver: Solver | Named | str | None
    steps: int
    spacing: Configured[Levels] | str | None
    levels: Levels | None
    clamp: Clamp
    strength: float | Level | None = None
    noise: Noise = "independent"
    upward: bool = False

    @property
    def start(self) -> Start:
        """What x is before the first evaluation."""
        if self.upward:
            return "inverse"
        return "noise" if self.strength is None else "image"

    def replaced(self, changes: Mapping[str, Any]) -> Course:
        """With some of them changed; `steps` or `spacing` take the place of levels.

        Raises:
            TypeError: another name.
        """
        names = [one.name for one in fields(self) if one.name != "upward"]
        for name in changes:
            if name not in names:
                raise TypeError(f"{name} cannot be replaced; what can: {', '.join(names)}")
        if "levels" not in changes and changes.keys() & {"steps", "spacing"}:
            changes = {**changes, "levels": None}
        return replace(self, **changes)

    def plan_arguments(
        self, model: Model
    ) -> tuple[Prediction, Levels, Solver, Guidance | None, Bounds]:
        """The first arguments of `make_plan`."""
        solver = named(self.solver) if isinstance(self.solver, str) else self.solver
        spacing, levels = self.spacing, self.levels
        if isinstance(solver, Named):
            spacing, solver = spacing or solver.spacing, solver.solver
        if solver is not None and not isinstance(solver, Configured):
            raise TypeError(
                f"solver is {solver!r}, but it should be a solver such as fastguide.ddim"
            )
        check_name("noise", self.noise, get_args(Noise))
        if levels is not None and not isinstance(levels, Levels):
            raise TypeError(
                f"levels is {shown(levels)}, but it should be a fastguide.Levels, such as "
                "Levels.from_times(process, times) or Levels.from_sigmas(process, sigmas)"
            )
        if spacing is not None and not isinstance(spacing, (str, Configured)):
            raise TypeError(
                f"spacing is {shown(spacing)}, but it should be a spacing such as "
                "fastguide.karras, or its name"
            )
        if isinstance(spacing, str):
            spacing = spacing_by_name(spacing)
        usual: Usual | None = None if model.usual is None else model.usual(self.steps)
        if levels is None and spacing is None and usual is not None:
            levels = usual.levels
        if levels is None:
            levels = make_levels(model.process, self.steps, spacing)
        if self.strength is not None:
            levels = levels.later(self.strength)
        if self.upward:
            levels = levels.upward()
        if solver is None:
            solver = ddim if usual is None else usual.solver
        clamp = bounds(self.clamp)
        if clamp is None and usual is not None:
            clamp = usual.clamp
        return (model.prediction, levels, solver, self.guidance, clamp)


def bounds(
    clamp: Clamp,
) -> Bounds:
    """(low, high) of a clamp."""
    if clamp is None or isinstance(clamp, DynamicThreshold):
        return clamp
    wrong = f"clamp is {shown(clamp)}, but it should be a positive number or a pair low < high"
    found: list[float] = []
    for bound in clamp if isinstance(clamp, (tuple, list)) else (clamp,):
        if isinstance(bound, bool) or not isinstance(bound, Real):
            raise TypeError(f"{wrong}, or a DynamicThreshold")
        try:
            found.append(float(bound))
        except OverflowError:
            raise ValueError(wrong) from None
    if len(found) not in (1, 2):
        raise TypeError(f"{wrong}, or a DynamicThreshold")
    low, high = (-found[0], found[0]) if len(found) == 1 else found
    if not low < high:  # nor where one is NaN
        raise ValueError(wrong)
    return low, high
