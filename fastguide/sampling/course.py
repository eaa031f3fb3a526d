"""What a run does, apart from the network: all that a plan is made from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from fastguide.common.options import Configured, by_name
from fastguide.engine.threshold import DynamicThreshold
from fastguide.guidance.base import Guidance
from fastguide.model import Model
from fastguide.process import Prediction
from fastguide.solvers import Solver, ddim, solver_by_name
from fastguide.spacing import SPACINGS, Levels, make_levels

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
    """The arguments of `fastguide.Sampler` with these names."""

    guidance: Guidance | None
    solver: Solver | str | None
    steps: int
    spacing: Configured[Levels] | str | None
    levels: Levels | None
    clamp: Clamp

    def replaced(self, changes: Mapping[str, Any]) -> Course:
        """With some of them changed; `steps` or `spacing` take the place of levels.

        Raises:
            TypeError: another name.
        """
        names = [one.name for one in fields(self)]
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
        solver = solver_by_name(self.solver) if isinstance(self.solver, str) else self.solver
        if solver is not None and not isinstance(solver, Configured):
            raise TypeError(
                f"solver is {solver!r}, but it should be a solver such as fastguide.ddim"
            )
        spacing, levels = self.spacing, self.levels
        if isinstance(spacing, str):
            spacing = by_name("spacing", spacing, SPACINGS)
        usual: Usual | None = None if model.usual is None else model.usual(self.steps)
        if levels is None and spacing is None and usual is not None:
            levels = usual.levels
        if levels is None:
            levels = make_levels(model.process, self.steps, spacing)
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
    low, high = (-clamp, clamp) if isinstance(clamp, (int, float)) else clamp
    if not low < high or math.isnan(low) or math.isnan(high):
        raise ValueError(
            f"clamp is {clamp!r}, but it should be a positive number or a pair low < high"
        )
    return float(low), float(high)
