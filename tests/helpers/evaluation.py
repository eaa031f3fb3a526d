"""One evaluation of a sampler's engine, to look inside."""

from __future__ import annotations

import torch

import fastguide as fg
from fastguide.engine.evaluate import Evaluate
from fastguide.engine.passes import Conditions, make_passes
from fastguide.engine.plan import make_plan
from fastguide.engine.predict import Predict
from fastguide.solvers import ddim


def evaluated(model, guidance, level, x, cond, negative=None):
    """(Evaluate, Combination) of the network at x fp32 `[B, *shape]`, of the process's `level`."""
    end = fg.Level(0.0, 1.0, 0.0)
    levels = fg.Levels(model.process, (level, end))
    plan = make_plan(model.prediction, levels, ddim, guidance)
    pattern = plan.rows[1].pattern
    passes = {pattern: make_passes(pattern, {None: model.net})}
    null = None if model.null is None else torch.full_like(cond, model.null)
    beside = {"negative": null if negative is None else negative, "null": null}
    conditions = Conditions({None: {"cond": cond, **beside}}, target=cond)
    known = (conditions, torch.arange(len(x)), torch.float32, model.outputs)
    evaluate = Evaluate(Predict(plan, passes, *known))
    inputs = (model.prediction.input_scale(level) * x).repeat(
        passes[pattern].inputs, *[1] * (x.ndim - 1)
    )
    with torch.no_grad():
        return evaluate, evaluate(plan.at(1), pattern, inputs, x)
