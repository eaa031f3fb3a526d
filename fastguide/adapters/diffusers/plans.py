"""A pipeline's run, worked out: the plan of its scheduler's levels under its guidance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from fastguide.adapters.diffusers.draws import Draws
from fastguide.adapters.diffusers.schedulers import Course, Meaning, course_of
from fastguide.engine.plan import Plan, make_plan
from fastguide.guidance.base import Guidance
from fastguide.staging.perturbation import Layers


@dataclass(frozen=True)
class Planned:
    """A run's plan.

    Args:
        alphas: what latents are multiplied with to be our x, before each row and after the last.
        scales: of the network's input for x, before each row.
    """

    course: Course
    plan: Plan
    alphas: tuple[float, ...]
    scales: tuple[float, ...]


def planned(
    scheduler: Any,
    meaning: Meaning,
    guidance: Guidance | None,
    begin: int,
    draws: Draws,
    device: torch.device,
    choose: Callable[[Layers], tuple[str, ...]],
) -> Planned:
    """From the scheduler's timestep number `begin` on; `choose` names the layers that are meant."""
    course = course_of(scheduler, begin, draws.eta, draws.use_clipped)
    plan = make_plan(
        meaning.prediction,
        course.levels,
        course.solver,
        guidance,
        meaning.clamp,
        device=device,
        choose=choose,
    )
    evaluations = [e for e, row in enumerate(plan.rows) if row.pattern is not None]
    if evaluations != list(range(1, 1 + len(course.times))):
        raise RuntimeError(
            f"{course.solver} evaluates {len(evaluations)} times in {len(plan.rows)} rows, "
            f"but the scheduler has {len(course.times)} timesteps"
        )
    times = torch.tensor([0.0, *course.times], dtype=torch.float64)
    levels = [row.at for row in plan.rows[1:] if row.at is not None]
    alphas = (1.0, *(at.alpha for at in levels), course.levels.points[-1].alpha)
    scales = (1.0, *(meaning.prediction.input_scale(at) for at in levels))
    alphas = alphas if meaning.scaled else (1.0,) * len(alphas)
    return Planned(course, replace(plan, times=times.to(plan.times)), alphas, scales)


def scheduler_key(scheduler: Any) -> tuple[Any, ...]:
    """What tells a scheduler's present run from another's."""
    sigmas = getattr(scheduler, "sigmas", None)
    table = getattr(scheduler, "alphas_cumprod", None)
    return (
        type(scheduler).__name__,
        repr(scheduler.config),
        *scheduler.timesteps.tolist(),
        None if sigmas is None else tuple(sigmas.tolist()),
        None if table is None else tuple(table.tolist()),
    )
