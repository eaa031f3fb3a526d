"""Runs a plan: the network, then one `step`, as often as the plan says. Nothing in the loop waits
for the device, and nothing in it is allocated but what the network allocates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastguide import ops
from fastguide.engine.evaluate import EMPTY, Combination, Evaluate
from fastguide.engine.passes import Conditions, Passes
from fastguide.engine.path import draw
from fastguide.engine.pattern import Pattern
from fastguide.engine.plan import PREVIEW, At, Plan, Row
from fastguide.engine.predict import Predict
from fastguide.engine.watch import Watch
from fastguide.ops.table import Column, Extra, matrix


@dataclass(frozen=True)
class Inputs:
    """What one run is given: all on the plan's device.

    Args:
        conditions: what the networks take as `cond`.
        seeds: int64 `[B]`.
        noise: fp32 `[B, *shape]` for the start, or None: drawn from the seeds.
        step_noise: fp32 `[B, *shape]` for each update that draws, in order, or None.
        init: fp32 `[B, *shape]`, the image that a plan `from_image` starts from.
    """

    conditions: Conditions
    seeds: Tensor
    noise: Tensor | None = None
    step_noise: Sequence[Tensor] | None = None
    init: Tensor | None = None


def run(
    plan: Plan,
    passes: Mapping[Pattern, Passes],
    inputs: Inputs,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    outputs: int = 1,
    watch: Watch | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sample; `outputs` is how many times `shape[0]` channels the network returns (heads, or a
    prediction and its variance).

    Returns x fp32 `[B, *shape]`, or where `watch` ended the run the denoised image; int32 `[B]`,
    the row at which each sample became non-finite (the number of rows where none did); and int64
    `[B]`, the row at which the gradient of a potential did.

    Raises:
        ValueError: the network returns a wrong shape or dtype.
    """
    batch = inputs.seeds.shape[0]
    state, buffer, first_bad = buffers(plan, passes, inputs.seeds, shape, dtype)
    if inputs.init is not None:
        state[0].copy_(inputs.init)
    evaluate = Evaluate(Predict(plan, passes, inputs.conditions, inputs.seeds, dtype, outputs))
    given = iter(inputs.step_noise or ())
    pattern: Pattern | None = None
    for e, row in enumerate(plan.rows):
        combined = EMPTY
        if pattern is not None:
            x = buffer[: passes[pattern].inputs * batch]
            if aliases(plan.rows[e - 1], passes[pattern], dtype):
                x = state[0]
            combined = evaluate(plan.at(e), pattern, x, state[0])
        pattern = evaluate.pattern(plan.rows[e + 1]) if e + 1 < len(plan.rows) else None
        net_input = None
        if pattern is not None and not aliases(row, passes[pattern], dtype):
            net_input = buffer[: passes[pattern].inputs * batch]
        noise = None
        if row.draws:
            noise = inputs.noise if e == 0 else next(given, None) if inputs.step_noise else None
        update(plan, plan.at(e), state, combined, first_bad, inputs.seeds, noise, net_input)
        if watch is not None:
            if watch(e, state):
                return state[plan.slots.index(PREVIEW)], first_bad, evaluate.bad_gradient
            if net_input is not None:
                renew(plan.at(e), state[0], net_input)
    return state[0], first_bad, evaluate.bad_gradient


def buffers(
    plan: Plan,
    passes: Mapping[Pattern, Passes],
    seeds: Tensor,
    shape: tuple[int, ...],
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """What a run works on: the slots fp32 `[slots, B, *shape]`, the network's input for the pattern
    of most copies, and int32 `[B]`, the number of rows: no sample is bad yet.
    """
    device, batch = seeds.device, seeds.shape[0]
    copies = max(one.inputs for one in passes.values())
    return (
        torch.empty((len(plan.slots), batch, *shape), device=device, dtype=torch.float32),
        torch.empty((copies * batch, *shape), device=device, dtype=dtype),
        torch.full((batch,), len(plan.rows), dtype=torch.int32, device=device),
    )


def update(
    plan: Plan,
    at: At,
    state: Tensor,
    combined: Combination,
    first_bad: Tensor,
    seeds: Tensor,
    noise: Tensor | None = None,
    net_input: Tensor | None = None,
    checked: bool = False,
) -> None:
    """A row of the plan: one `step` of the slots `state`, with what its evaluation gave; `checked`
    as there.
    """
    row = at.row
    variance = combined.variance if row.learned else None
    if row.path and noise is None and plan.path is not None:
        noise = draw(plan.path, at.index, seeds, state.shape[2:])
    if row.draws and combined.shift is not None:
        noise = _shifted(plan, at, noise, seeds, variance, combined.shift)
    weights = plan.weights if combined.weights is None else combined.weights
    how = (combined.deltas, combined.factor, combined.factored)
    bound = None
    if combined.branches and plan.threshold is not None:
        now = at.weights
        if combined.weights is not None:
            found = combined.weights.index_select(0, at.index)
            now = found[:, 0] if at.each else found[0]
        bound = plan.threshold.bounds(state[0], combined.branches, now, at.table, *how)
    ops.step(
        state,
        combined.branches,
        weights,
        plan.table,
        at.index,
        first_bad,
        seeds=seeds if row.draws and noise is None else None,
        noise=noise,
        net_input=net_input,
        reads=row.reads,
        writes=row.writes,
        variance=variance,
        bound=bound,
        extra=row.extra,
        deltas=combined.deltas,
        factor=combined.factor,
        factored=combined.factored,
        checked=checked,
        number=at.counted if at.each else None,
    )
    if combined.after is not None:
        _move(plan, at, state, combined.after, first_bad)
        if net_input is not None:
            renew(at, state[0], net_input)


def _move(plan: Plan, at: At, state: Tensor, by: Tensor, first_bad: Tensor) -> None:
    """Make the slots what they were if the denoised image had been moved after it was clamped."""
    images = matrix(at.table)[:, len(plan.slots)]
    if at.row.extra == Extra.UNCLAMPED:
        images = images + matrix(at.table)[:, len(plan.slots) + 2]
    for slot in range(len(plan.slots)):
        if at.row.writes >> slot & 1:
            state[slot].add_(images[slot] * by)
    finite = state[0].flatten(1).isfinite().all(1)
    worse = torch.minimum(first_bad, at.counted.to(first_bad.dtype))
    first_bad.copy_(torch.where(finite, first_bad, worse))


def _shifted(
    plan: Plan,
    at: At,
    noise: Tensor | None,
    seeds: Tensor,
    variance: Tensor | None,
    shift: Tensor,
) -> Tensor:
    """The update's noise, its mean moved so that x moves by the noise's variance times `shift`."""
    row = at.table
    std = matrix(row)[0, len(plan.slots) + 1]
    if variance is not None:
        std = std * (row[Column.SPREAD] * variance.float()).exp()
    drawn = ops.noise(seeds, shift.shape[1:], at.number) if noise is None else noise
    return (drawn + std * shift).contiguous()


def renew(at: At, x: Tensor, net_input: Tensor) -> None:
    """Make the network's next input anew from x, which changed after the row's update."""
    copies = net_input.shape[0] // x.shape[0]
    net_input.view(copies, *x.shape).copy_(at.table[Column.INPUT_SCALE] * x)


def aliases(before: Row, passes: Passes, dtype: torch.dtype) -> bool:
    """Whether the network can read x itself: one fp32 block of rows, unscaled."""
    return passes.inputs == 1 and dtype == torch.float32 and before.input_scale == 1.0
