"""A run as reinforcement learning sees it: its trajectory, and how likely each step was."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastguide import ops
from fastguide.engine.plan import Plan
from fastguide.ops import table as _table
from fastguide.process import Level


@dataclass(frozen=True)
class Rollout:
    """The steps k = 0 ... T - 1 of a run, each from `x[k]` to `x[k + 1]`.

    A step that draws noise is a Gaussian policy: `x[k + 1] = mean + stds[k] n`, where the mean
    depends on x[k], the network and, for a multistep solver, on what it kept of earlier steps.

    Args:
        samples: fp32 `[B, *shape]`, the last of x.
        x: fp32 `[T + 1, B, *shape]`.
        noise: fp32 `[T, B, *shape]`, n; zeros where nothing is drawn. The mean is
            `x[k + 1] - stds[k] noise[k]`.
        log_probs: fp64 `[T, B]`, `log N(x[k + 1]; mean, stds[k]^2)` summed over the elements; 0 for
            a step that draws nothing.
        stds: of each step, 0 where nothing is drawn.
        levels: where the network is evaluated; None for a step without an evaluation.
        times: what it is given for a time there.
    """

    samples: Tensor
    x: Tensor
    noise: Tensor
    log_probs: Tensor
    stds: tuple[float, ...]
    levels: tuple[Level | None, ...]
    times: tuple[float, ...]


def check_rollout(plan: Plan, known: object) -> None:
    """Raise ValueError where steps are no Gaussians of one deviation."""
    if known is not None:
        raise ValueError(
            "known is given with a rollout, but what is put back after a step has no density"
        )
    if plan.path is not None:
        raise ValueError("noise is 'brownian', but a rollout needs steps that are 'independent'")
    if plan.learned:
        raise ValueError(
            "rollout is asked of a solver with a learned variance, but it should be one whose "
            "noise has one deviation, such as ddim(eta=1.0)"
        )


def rollout_of(
    plan: Plan, x: Tensor, seeds: Tensor, given: Sequence[Tensor] | None = None
) -> Rollout:
    """From x after each row, `[T + 1, B, *shape]`; a run that was ended early has fewer.

    Args:
        seeds: int64 `[B]`.
        given: the noise of each step that draws, where it was given.
    """
    rows = plan.rows[1 : len(x)]
    table = plan.table.double().cpu()
    column = len(plan.slots) + 1
    stds = [float(_table.matrix(table[e])[0, column]) for e in range(1, len(x))]
    stds = [abs(std) if row.draws else 0.0 for std, row in zip(stds, rows, strict=True)]
    noise = torch.zeros_like(x[1:])
    log_probs = torch.zeros(len(rows), x.shape[1], dtype=torch.float64, device=x.device)
    drawn, size = iter(given or ()), x[0, 0].numel()
    for k, std in enumerate(stds):
        if not rows[k].draws:
            continue
        own = next(drawn) if given is not None else ops.noise(seeds, x.shape[2:], k + 1)
        if std == 0.0:
            continue
        noise[k] = own
        constant = size * (math.log(std) + 0.5 * math.log(2.0 * math.pi))
        log_probs[k] = -0.5 * own.double().square().flatten(1).sum(1) - constant
    return Rollout(
        samples=x[-1],
        x=x,
        noise=noise,
        log_probs=log_probs,
        stds=tuple(stds),
        levels=tuple(row.at for row in rows),
        times=tuple(plan.times[1 : len(x)].tolist()),
    )
