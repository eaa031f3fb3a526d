"""What one call is given, checked and bound: the inputs of a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from fastguide import ops
from fastguide.common.arrays import as_tensor
from fastguide.common.checks import shown
from fastguide.engine.passes import Conditions
from fastguide.engine.run import Inputs
from fastguide.guidance.base import Other
from fastguide.ops.noise import check_seed
from fastguide.sampling.conditions import bind, bind_other, bind_target, samples_of
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


def seeds_of(
    planned: Planned,
    seeds: int | Iterable[int] | Tensor | None,
    cond: Any,
    negative: Any,
    *images: Any,
) -> Tensor:
    """The seeds int64 `[B]` of a call. None are 0 ... B - 1, an int is the first of B that follow
    each other, where the condition, the negative one, a batch of images or the guidance say B.
    """
    first = 0 if seeds is None else seeds
    array = hasattr(first, "ndim") and first.ndim == 0
    if not array and (isinstance(first, bool) or not isinstance(first, Integral)):
        return ops.as_seeds(first, planned.setup.device)
    start = int(ops.as_seeds(first)[0])
    model, rank = planned.setup.model, len(planned.setup.settings.shape)
    found = [samples_of("cond", cond, model), samples_of("negative", negative, model)]
    found += [len(one) for one in images if getattr(one, "ndim", 0) == rank + 1]
    batch = next((one for one in (*found, planned.plan.batch) if one is not None), 1)
    if not batch:
        raise ValueError("cond is empty, but there should be one for each sample")
    check_seed(start + batch - 1, "seeds", "has")
    return start + torch.arange(batch, dtype=torch.int64, device=planned.setup.device)


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
    noise = as_tensor(noise)
    if not isinstance(noise, Tensor):
        raise TypeError(f"{name} is {shown(noise)}, but it should be a tensor or an array {shape}")
    if noise.shape != shape or not noise.is_floating_point():
        raise ValueError(
            f"{name} is {noise.dtype} of shape {tuple(noise.shape)}, but it should be floats "
            f"{shape}"
        )
    return noise.to(planned.setup.device, torch.float32).contiguous()


def _as_noises(planned: Planned, noises: Sequence[Tensor], batch: int) -> list[Tensor]:
    draws = sum(row.draws for row in planned.plan.rows[1:])
    if not isinstance(noises, (list, tuple)):
        raise TypeError(f"step_noise is {shown(noises)}, but it should be a list of tensors")
    if len(noises) != draws:
        raise ValueError(f"step_noise has {len(noises)} tensors, but the plan draws {draws} times")
    return [_as_noise(planned, f"step_noise[{i}]", one, batch) for i, one in enumerate(noises)]
