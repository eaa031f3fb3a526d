"""What one call is given, checked and bound: the inputs of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastguide.common.checks import shown
from fastguide.engine.passes import Conditions
from fastguide.engine.run import Inputs
from fastguide.guidance.base import Other
from fastguide.sampling.conditions import bind, bind_other, bind_target
from fastguide.sampling.known import as_init
from fastguide.sampling.planning import Planned


def make_inputs(
    planned: Planned,
    cond: Any,
    negative: Any,
    seeds: Tensor,
    noise: Tensor | None = None,
    step_noise: Sequence[Tensor] | None = None,
    init: Tensor | None = None,
) -> Inputs:
    """The inputs of a run: `seeds` int64 `[B]` on its device, the rest as in a call of
    `fastguide.Sampler`, which says what is raised.
    """
    batch, plan = len(seeds), planned.plan
    if plan.batch not in (None, batch):
        raise ValueError(
            f"guidance holds values for {plan.batch} samples, but there are {batch} seeds"
        )
    return Inputs(
        conditions=bind_all(planned, cond, negative, batch),
        seeds=seeds,
        noise=None if noise is None else _as_noise(planned, "noise", noise, batch),
        step_noise=None if step_noise is None else _as_noises(planned, step_noise, batch),
        init=as_init(planned, init, batch),
    )


def bind_all(planned: Planned, cond: Any, negative: Any, batch: int) -> Conditions:
    """What all networks take as `cond`."""
    model, device, names = planned.setup.model, planned.setup.device, planned.names
    own = bind(model, names, cond, negative, batch, device)
    prepare = getattr(planned.setup.net, "prepare", None)  # what depends on the condition alone
    if prepare is not None and "random" not in names:
        own = {name: value if value is None else prepare(value) for name, value in own.items()}
    fixed: dict[Other | None, Any] = {None: own}
    for other in planned.others:
        fixed[other] = bind_other(other.model, model, cond, batch, device)
    target = bind_target(model, cond, batch, device) if "target" in names else None
    return Conditions(fixed, planned.drawn(own["cond"]), target)


def _as_noise(planned: Planned, name: str, noise: Tensor, batch: int) -> Tensor:
    shape = (batch, *planned.setup.settings.shape)
    if not isinstance(noise, Tensor):
        raise TypeError(f"{name} is {shown(noise)}, but it should be an fp32 tensor {shape}")
    if noise.shape != shape or noise.dtype != torch.float32:
        raise ValueError(
            f"{name} is {noise.dtype} of shape {tuple(noise.shape)}, but it should be fp32 {shape}"
        )
    return noise.to(planned.setup.device).contiguous()


def _as_noises(planned: Planned, noises: Sequence[Tensor], batch: int) -> list[Tensor]:
    draws = sum(row.draws for row in planned.plan.rows[1:])
    if not isinstance(noises, (list, tuple)):
        raise TypeError(f"step_noise is {shown(noises)}, but it should be a list of tensors")
    if len(noises) != draws:
        raise ValueError(f"step_noise has {len(noises)} tensors, but the plan draws {draws} times")
    return [_as_noise(planned, f"step_noise[{i}]", one, batch) for i, one in enumerate(noises)]
