"""A pipeline's run, worked out: the plan of its scheduler's levels under its guidance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from fastguide.adapters.diffusers.draws import Draws
from fastguide.adapters.diffusers.relay import check_plain, of_guided, relayed_course
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
        guided: where the scheduler takes its own steps, the plan by which `step` gives the guided
            prediction.
    """

    course: Course
    plan: Plan
    alphas: tuple[float, ...]
    scales: tuple[float, ...]
    guided: Plan | None = None


def planned(
    scheduler: Any,
    meaning: Meaning,
    guidance: Guidance | None,
    begin: int,
    draws: Draws,
    device: torch.device,
    choose: Callable[[Layers], tuple[str, ...]],
    relayed: str | None = None,
) -> Planned:
    """From the scheduler's timestep number `begin` on; `choose` names the layers that are meant,
    `relayed` says why the scheduler takes its own steps.
    """
    if relayed is None:
        course = course_of(scheduler, begin, draws.eta, draws.use_clipped)
    else:
        course = relayed_course(scheduler, meaning, begin)
        if not meaning.known:
            check_plain(guidance, relayed)
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
    plan = replace(plan, times=times.to(plan.times))
    guided = None if relayed is None else of_guided(plan)
    return Planned(course, plan, alphas, scales, guided)


def scheduler_key(scheduler: Any) -> tuple[Any, ...]:
    """What tells a scheduler's present run from another's."""
    sigmas = getattr(scheduler, "sigmas", None)
    table = getattr(scheduler, "alphas_cumprod", None)
    return (
        type(scheduler).__name__,
        repr(getattr(scheduler, "config", None)),
        *scheduler.timesteps.tolist(),
        None if sigmas is None else tuple(sigmas.tolist()),
        None if table is None else tuple(table.tolist()),
    )
