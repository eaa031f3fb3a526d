"""A sampler's course made ready for its network: the plan, and the passes of its patterns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, get_args

from torch import Tensor

from fastguide.engine.gradient import differentiable
from fastguide.engine.passes import Passes, make_passes
from fastguide.engine.pattern import Pattern
from fastguide.engine.plan import Plan, make_plan
from fastguide.engine.program import RowMode
from fastguide.guidance.base import Guidance, Other, no_guidance
from fastguide.sampling.checks import check_images, net_as, others_of
from fastguide.sampling.conditions import named_conditions, random_condition
from fastguide.sampling.course import Course
from fastguide.sampling.setup import Setup


@dataclass(frozen=True, eq=False)
class Planned:
    """All that runs of one course have in common.

    Args:
        names: the kinds of condition that the guidance needs (`named_conditions`).
        others: the other networks that it names.
        nets: all networks, `setup.net` under None, as the passes run them.
        passes: of each pattern, for each way in which its rows may run.
    """

    setup: Setup
    course: Course
    names: frozenset[str]
    others: tuple[Other, ...]
    nets: Mapping[Other | None, Any]
    plan: Plan
    passes: Mapping[RowMode, Mapping[Pattern, Passes]]

    @cached_property
    def preview(self) -> Plan:
        """The plan that keeps the denoised image of each evaluation, for callbacks."""
        return _plan(self.setup, self.course, preview=True)

    @cached_property
    def upward(self) -> Planned:
        """The same course from images to their noise."""
        return make_ready(self.setup, replace(self.course, upward=True), None, self.nets)

    def drawn(self, own: Any) -> Callable[[Tensor], Any] | None:
        """The random condition beside the network's own, where the guidance has one."""
        if "random" not in self.names:
            return None
        return partial(random_condition, self.setup.model, own)


def make_ready(
    setup: Setup,
    course: Course,
    rows: RowMode | None = None,
    known: Mapping[Other | None, Any] | None = None,
    lay_out: bool = True,
) -> Planned:
    """Plan the course.

    Args:
        rows: how rows should run, or None for any way; see `fastguide.Sampler`.
        known: the networks of an earlier course, which are used again.
        lay_out: whether the passes are made, and the network for gradients.

    Raises:
        ValueError, TypeError: an argument of `fastguide.Sampler` that is not as it should be.
    """
    model, guidance, device = setup.model, course.guidance, setup.device
    if guidance is not None and not isinstance(guidance, Guidance):
        raise no_guidance(guidance)
    check_images(setup.settings.shape, guidance)
    names = named_conditions(model, guidance)
    others = others_of(model, guidance, device)
    nets: dict[Other | None, Any] = dict(known or {None: setup.net})
    for one in others:
        if one not in nets:
            nets[one] = net_as(one.model, setup.settings.dtype)[0]
    possible = others and device.type == "cuda"
    if rows == "beside" and not possible:
        raise ValueError(
            "rows is 'beside', but that needs a GPU and a guidance with another network"
        )
    plan = _plan(setup, course)
    if lay_out and any(pattern.graph for pattern in plan.patterns):
        nets[None] = differentiable(nets[None])
    passes: dict[RowMode, Mapping[Pattern, Passes]] = {
        mode: {
            pattern: make_passes(pattern, nets, mode, setup.compiled) for pattern in plan.patterns
        }
        for mode in get_args(RowMode)
        if lay_out and (mode != "beside" or possible)
    }
    if plan.learned and not model.variance:
        raise ValueError(
            f"solver is {course.plan_arguments(model)[2]}, which needs a network that predicts a "
            "variance, but model.variance is False"
        )
    return Planned(setup, course, frozenset(names), others, nets, plan, passes)


def _plan(setup: Setup, course: Course, preview: bool = False) -> Plan:
    arguments = course.plan_arguments(setup.model)
    return make_plan(
        *arguments,
        preview=preview,
        start=course.start,
        device=setup.device,
        choose=setup.choose,
        noise=course.noise,
    )
