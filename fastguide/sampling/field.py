"""The guided denoised image at any level, for runs that choose their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fastguide.common.options import Configured
from fastguide.engine.denoise import denoise
from fastguide.engine.gradient import differentiable
from fastguide.engine.latch import ending
from fastguide.engine.plan import Plan
from fastguide.guidance.base import Guidance, Other
from fastguide.process import Level, data_level
from fastguide.sampling.course import Clamp, Course
from fastguide.sampling.inputs import bind_all
from fastguide.sampling.planning import make_ready
from fastguide.sampling.setup import Setup
from fastguide.solvers.update import Update
from fastguide.spacing import Levels


@Configured
def _denoised(levels: Levels) -> Iterator[Update]:
    yield Update(levels.points[0], {"denoised": 1.0})


class Field:
    """`field(x, level)`: the guided denoised image fp32 `[B, *shape]` of x `[B, *shape]`, evaluated
    as a run of one step does. `evaluations` counts.

    Args:
        grad: keep the graph, so that the image can be differentiated with respect to x.

    Raises:
        ValueError: a guidance that depends on what the run did before, or on where in the run a
            level lies.
    """

    def __init__(
        self,
        setup: Setup,
        guidance: Guidance | None,
        clamp: Clamp,
        cond: Any,
        negative: Any,
        seeds: Tensor,
        grad: bool = False,
    ) -> None:
        self.setup, self.guidance, self.clamp = setup, guidance, clamp
        self.seeds, self.grad, self.evaluations = seeds, grad, 0
        process = setup.model.process
        probes = [process.at_ratio(ratio) for ratio in (3.0, 0.5, 0.1)]
        _check_stands_alone(guidance, probes)
        self._known: dict[Other | None, Any] = {
            None: differentiable(setup.net) if grad else setup.net
        }
        first = self._ready(probes[1])
        _check_no_memory(first.plan)
        self._known = dict(first.nets)
        if first.plan.batch not in (None, len(seeds)):
            raise ValueError(
                f"guidance holds values for {first.plan.batch} samples, but there are {len(seeds)}"
            )
        self._conditions = bind_all(first, cond, negative, len(seeds))

    def _ready(self, level: Level) -> Any:
        levels = Levels(self.setup.model.process, (level, data_level()))
        course = Course(self.guidance, _denoised, 1, None, levels, self.clamp)
        return make_ready(self.setup, course, None, self._known)

    def __call__(self, x: Tensor, level: Level) -> Tensor:
        self.evaluations += 1
        ready = self._ready(level)
        plan, settings = ready.plan, self.setup.settings
        _check_no_memory(plan)
        mode = "batched" if self._conditions.joinable else "sequential"
        with torch.set_grad_enabled(self.grad):
            passes = ready.passes[mode]
            how = (settings.dtype, settings.outputs)
            return denoise(plan, passes, self._conditions, self.seeds, x, *how)


def _check_stands_alone(guidance: Guidance | None, probes: Sequence[Level]) -> None:
    """That each weight depends on its own level only."""
    for term in guidance.terms() if guidance is not None else ():
        try:
            alone = torch.cat([term.weights([level]) for level in probes])
            same = torch.equal(term.weights(probes), alone)
        except (ValueError, IndexError):  # one value for each step of a run
            same = False
        if not same:
            raise ValueError(
                f"{term.name} or its schedule depends on where in a run a level lies, but this run "
                "chooses its own levels: use interval(..., over='sigma'), a span, or a function"
            )


def _check_no_memory(plan: Plan) -> None:
    for row in plan.rows:
        for branch in row.pattern.branches if row.pattern is not None else ():
            moving = branch.projection is not None and (
                branch.projection.momentum != 0.0 or branch.projection.zero_steps
            )
            if branch.every > 1 or moving or ending(row):
                raise ValueError(
                    "guidance remembers earlier evaluations (every=, momentum=, zero_steps= or "
                    "Adaptive), but this run evaluates at levels of its own choice"
                )
