"""The network forwards that a run needs, and nothing else: the twin of a whole run."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

import fastguide as fg
from fastguide.engine.plan import Plan


def bare_forwards(model: fg.Model, plan: Plan, labels: Tensor) -> Callable[[], None]:
    """A function that runs the network as often as a single-pass `plan` does, on one batch."""
    x = torch.randn(len(labels), *model.shape)
    cond = (labels, torch.full_like(labels, model.null))
    times = [torch.full((len(labels),), row.at.t) for row in plan.rows if row.at is not None]

    @torch.no_grad()
    def forwards() -> None:
        for t in times:
            model.net(x, t, cond)

    return forwards
