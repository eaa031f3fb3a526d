"""One evaluation by itself: the guided denoised image, in plain PyTorch, so that it can be
differentiated.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fastguide import reference
from fastguide.engine.evaluate import Evaluate
from fastguide.engine.passes import Conditions, Passes
from fastguide.engine.pattern import Pattern
from fastguide.engine.plan import Plan
from fastguide.engine.predict import Predict


def denoise(
    plan: Plan,
    passes: Mapping[Pattern, Passes],
    conditions: Conditions,
    seeds: Tensor,
    x: Tensor,
    dtype: torch.dtype,
    outputs: int,
) -> Tensor:
    """What row 1 of a plan, whose update gives the denoised image alone, makes of x fp32 `[B,
    *shape]`. The other arguments are those of `fastguide.engine.run.run`.
    """
    at = plan.at(1)
    pattern = at.row.pattern
    assert pattern is not None
    predict = Predict(plan, passes, conditions, seeds, dtype, outputs)
    scaled = (plan.rows[0].input_scale * x).to(dtype)
    found = Evaluate(predict)(at, pattern, scaled, x)
    weights = plan.weights if found.weights is None else found.weights
    weights = weights[1, :, : 1 + len(found.branches)]
    how = (found.deltas, found.factor, found.factored)
    bound = None
    if plan.threshold is not None:
        bound = plan.threshold.bounds(x, found.branches, weights, at.table, *how)
    state, _ = reference.step(
        x.unsqueeze(0), found.branches, weights, at.table, None, None, bound, 0, *how
    )
    return state[0] if found.after is None else state[0] + found.after
