"""Guided in, guided out: a scheduler whose steps are not ours takes its own, with the guided
prediction, which is what the network returns for every row that the pipeline asks for.

What an evaluation means is told by its timestep, which is what the network was trained on. Where
the scheduler does not say that either, only guidance that asks for no noise level runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastguide.adapters.diffusers.scales import Changed
from fastguide.adapters.diffusers.schedulers import (
    PREDICTIONS,
    Course,
    Jumps,
    Meaning,
    NotOurs,
    meaning_of,
)
from fastguide.common.options import Configured
from fastguide.engine.plan import Plan
from fastguide.guidance.base import Guidance
from fastguide.ops.table import Column, matrix
from fastguide.process import EDM, VP, Flow, Level, Prediction, data_level
from fastguide.solvers.update import Update
from fastguide.spacing import Levels
from fastguide.staging.perturbation import NoisyTime

_LOOP = ("step", "scale_model_input", "set_timesteps")


def read(scheduler: Any, why: str | None = None) -> tuple[str | None, Meaning]:
    """Why the scheduler is to take its own steps, as far as `why`, its class and its flags say, or
    None; and what its numbers mean.
    """
    why = why or _own_method(scheduler)
    if why is None:
        try:
            return None, meaning_of(scheduler)
        except NotOurs as error:
            why = str(error)
    return why, relayed_meaning(scheduler)


def _own_method(scheduler: Any) -> str | None:
    for name in _LOOP:
        own = getattr(type(scheduler), name, None)
        theirs = own is None or str(own.__module__).startswith("diffusers.")
        if name in scheduler.__dict__ or not theirs:
            return f"the scheduler is a {type(scheduler).__name__} with a {name} of its own"
    return None


def is_patched(scheduler: Any) -> bool:
    """Whether methods were put on this one object, which a copy would not have for itself."""
    return any(name in scheduler.__dict__ for name in _LOOP)


def relayed_meaning(scheduler: Any) -> Meaning:
    """What the network's times and predictions mean; `known` where the scheduler says so."""
    try:
        return replace(meaning_of(scheduler), clamp=None, scaled=False)
    except NotOurs:
        pass
    config = getattr(scheduler, "config", None)
    total = getattr(config, "num_train_timesteps", None)
    named = getattr(config, "prediction_type", None)
    kind = PREDICTIONS.get(str(named))
    flow = any(one.__name__.startswith("FlowMatch") for one in type(scheduler).__mro__)
    if total and (kind == "flow" or (flow and named is None)):
        return Meaning(Flow(), Prediction("flow"), None, False, float(total))
    table = getattr(scheduler, "alphas_cumprod", None)
    if kind in ("eps", "v", "x0") and isinstance(table, Tensor) and len(table) == total:
        return Meaning(_process(table), Prediction(kind), None, False)  # type: ignore[arg-type]
    # a denoised image that is the prediction: nothing that is asked of it may need more
    return Meaning(EDM(), Prediction("x0"), None, False, known=False)


def _process(table: Tensor) -> VP:
    squares = table.double().cpu()
    before = torch.cat([torch.ones(1, dtype=squares.dtype), squares[:-1]])
    return VP.from_betas((1.0 - squares / before).tolist())


def relayed_course(scheduler: Any, meaning: Meaning, begin: int) -> Course:
    """One evaluation at each of the scheduler's timesteps; no update of ours."""
    times = [float(t) / meaning.time_scale for t in scheduler.timesteps.tolist()[begin:]]
    points = tuple(_level(meaning, t, number) for number, t in enumerate(times))
    pairs = tuple((point, point) for point in points)
    levels = Jumps(meaning.process, (*points, data_level()), pairs=pairs)
    return Course(levels, relay, tuple(times))


def _level(meaning: Meaning, t: float, number: int) -> Level:
    process = meaning.process
    if not meaning.known:
        return Level(t, 1.0, 1.0 / (1 + number))  # falling, so that steps can be counted
    if isinstance(process, Flow):
        return Level(t, 1.0 - t, t)
    if isinstance(process, EDM):
        sigma = math.exp(4.0 * t)  # networks of EDM are told log(sigma) / 4
        return Level(sigma, 1.0, sigma)
    return process.level(min(max(t, 0.0), process.t_max))


@Configured
def relay(levels: Levels) -> Iterator[Update]:
    """No solver: x becomes what the evaluation gives."""
    for now, _ in levels.steps():
        yield Update(now, {"denoised": 1.0})


def of_guided(plan: Plan) -> Plan:
    """The plan with a table by which `step` gives the guided prediction, not the image.

    `step` makes w_x a x + b g of the weights; g + (w_x - 1) a x / b is asked for.
    """
    table = plan.table.clone()
    projects = any(row.pattern is not None and row.pattern.projects for row in plan.rows)
    image, gain = table[:, Column.OF_X].double(), table[:, Column.OF_PREDICTION].double()
    share = image / torch.where(gain == 0.0, 1.0, gain)
    share = torch.where(gain == 0.0, 0.0, share) if projects else torch.zeros_like(share)
    table[:, Column.OF_X], table[:, Column.OF_PREDICTION] = share.to(table), 1.0
    rows = list(plan.rows)
    for e, row in enumerate(rows):
        matrix(table[e])[0, 0] = -table[e, Column.OF_X]
        rows[e] = replace(row, reads=row.reads | int(projects))
    return replace(plan, table=table, rows=tuple(rows))


def check_plain(guidance: Guidance | None, why: str) -> None:
    """Raise where the guidance asks for a noise level, which the scheduler does not tell."""
    for term in guidance.terms() if guidance is not None else ():
        branch = term.branch
        what = None
        if _goes_by_level(term.amount) or _goes_by_level(term.schedule):
            what = "its schedule goes by the level"
        elif branch.degraded or branch.potential or branch.rectified or branch.projection:
            what = "it works on the denoised image"
        elif any(one.space == "denoised" for one in branch.rescales):
            what = "it rescales the denoised image"
        elif isinstance(branch.how, NoisyTime):
            what = "it perturbs the time by its level"
        if what is not None:
            raise ValueError(
                f"guidance is {guidance!r}, and {what}; but {why}, and does not say what noise "
                "its network's input holds (alphas_cumprod and prediction_type)"
            )


def _goes_by_level(amount: Any) -> bool:
    """Whether a schedule reads more of the levels than their number."""
    if isinstance(amount, Changed):
        return _goes_by_level(amount.before)
    return callable(amount) or getattr(amount, "over", "step") != "step"
