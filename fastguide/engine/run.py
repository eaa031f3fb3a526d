"""Runs a plan: the network, then one `step`, as often as the plan says. Nothing in the loop waits
for the device, and nothing in it is allocated but what the network allocates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from fastguide import ops
from fastguide.engine.plan import PREVIEW, Plan, Row
from fastguide.guidance.base import POSITIVE, Condition
from fastguide.model import Net
from fastguide.process import Level


@dataclass(frozen=True)
class Progress:
    """What a callback sees after an evaluation; the tensors are views, valid until the next one.

    Args:
        evaluation: 1 ... evaluations.
        at: the level of the evaluation.
        x: fp32 `[B, *shape]`, after the update.
        denoised: fp32 `[B, *shape]`, the guided denoised image of this evaluation.
    """

    evaluation: int
    evaluations: int
    at: Level
    x: Tensor
    denoised: Tensor


@dataclass(frozen=True)
class Inputs:
    """What one run is given: all on the plan's device.

    Args:
        conditions: what the network takes as `cond`, for each condition that the plan names.
        seeds: int64 `[B]`.
        noise: fp32 `[B, *shape]` for the start, or None: drawn from the seeds.
        step_noise: fp32 `[B, *shape]` for each update that draws, in order, or None.
    """

    conditions: Mapping[Condition, Any]
    seeds: Tensor
    noise: Tensor | None = None
    step_noise: Sequence[Tensor] | None = None


def run(
    plan: Plan,
    net: Net,
    inputs: Inputs,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    outputs: int = 1,
    callback: Callable[[Progress], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Sample; `outputs` is how many times `shape[0]` channels the network returns (heads, or a
    prediction and its variance).

    Returns x fp32 `[B, *shape]` and int32 `[B]`, the row at which each sample became
    non-finite (the number of rows where none did).

    Raises:
        ValueError: the network returns a wrong shape or dtype.
    """
    device, batch = inputs.seeds.device, inputs.seeds.shape[0]
    state = torch.empty((len(plan.slots), batch, *shape), device=device)
    buffer = torch.empty((plan.most_conditions * batch, *shape), device=device, dtype=dtype)
    first_bad = torch.full((batch,), len(plan.rows), dtype=torch.int32, device=device)
    conditions = _conditions(plan, inputs)
    given = iter(inputs.step_noise or ())
    evaluation = 0
    for e, row in enumerate(plan.rows):
        branches: list[Tensor] = []
        if row.pattern is not None:
            rows = len(row.pattern.conditions) * batch
            x = state[0] if _aliases(plan.rows[e - 1], row, dtype) else buffer[:rows]
            output = net(x, plan.times[e].expand(rows), conditions[row.pattern.conditions])
            _check_output(output, (rows, outputs * shape[0], *shape[1:]), device)
            branches = [
                _view(row, output, batch, branch.cond, branch.head, outputs)
                for branch in row.pattern.branches
            ]
        following = plan.rows[e + 1] if e + 1 < len(plan.rows) else None
        net_input = None
        if following is not None and following.pattern and not _aliases(row, following, dtype):
            net_input = buffer[: len(following.pattern.conditions) * batch]
        noise = None
        if row.draws:
            noise = inputs.noise if e == 0 else next(given, None) if inputs.step_noise else None
        variance = None
        if row.learned:
            variance = _view(row, output, batch, POSITIVE.cond, 1, outputs)
        bound = None
        if branches and plan.threshold is not None:
            bound = plan.threshold.bounds(state[0], branches, plan.weights[e], plan.table[e])
        ops.step(
            state,
            branches,
            plan.weights,
            plan.table,
            plan.index[e],
            first_bad,
            seeds=inputs.seeds if row.draws and noise is None else None,
            noise=noise,
            net_input=net_input,
            reads=row.reads,
            writes=row.writes,
            variance=variance,
            bound=bound,
            extra=row.extra,
        )
        if callback is not None and row.at is not None:
            evaluation += 1
            denoised = state[plan.slots.index(PREVIEW)]
            callback(Progress(evaluation, plan.evaluations, row.at, state[0], denoised))
    return state[0], first_bad


def _aliases(before: Row, row: Row, dtype: torch.dtype) -> bool:
    """Whether the network can read x itself: one fp32 block of rows, unscaled."""
    assert row.pattern is not None
    single = len(row.pattern.conditions) == 1
    return single and dtype == torch.float32 and before.input_scale == 1.0


def _conditions(plan: Plan, inputs: Inputs) -> dict[tuple[Condition, ...], Any]:
    """The network's `cond` for each pattern, blocks of rows laid one after the other."""
    patterns = {row.pattern.conditions for row in plan.rows if row.pattern is not None}
    return {
        names: inputs.conditions[names[0]]
        if len(names) == 1 or inputs.conditions[names[0]] is None
        else tree_map(lambda *parts: torch.cat(parts), *(inputs.conditions[name] for name in names))
        for names in patterns
    }


def _view(row: Row, output: Tensor, batch: int, cond: Condition, part: int, of: int) -> Tensor:
    """One branch of the output: a slice of its rows and one of `of` channel parts, never a copy."""
    assert row.pattern is not None
    channels = output.shape[1] // of
    rows = output.narrow(0, row.pattern.conditions.index(cond) * batch, batch)
    return rows.narrow(1, part * channels, channels)


def _check_output(output: Tensor, shape: tuple[int, ...], device: torch.device) -> None:
    if not isinstance(output, Tensor) or tuple(output.shape) != shape or output.device != device:
        found = (
            f"{tuple(output.shape)} on {output.device}"
            if isinstance(output, Tensor)
            else f"a {type(output).__name__}"
        )
        raise ValueError(f"net returned {found}, but it should return a tensor {shape} on {device}")
