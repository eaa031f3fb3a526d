"""Guidance with three conditions, and layers left out of the negative rows."""

import pytest
import torch
from evaluation import evaluated
from test_perturbation import dit, model_of

import fastguide as fg
from fastguide.engine.plan import make_plan
from fastguide.solvers import ddim

LEVEL = fg.Level(0.6, 0.4, 0.6)
COND, OTHER = torch.tensor([0, 1]), torch.tensor([2, 4])


def guided(model, guidance, x, negative=None):
    """The guided prediction at one level."""
    _, found = evaluated(model, guidance, LEVEL, x, COND, negative)
    levels = fg.Levels(fg.Flow(), (LEVEL, fg.Level(0.0, 1.0, 0.0)))
    a, b = model.prediction.denoised(LEVEL)
    plan = make_plan(model.prediction, levels, ddim)
    from fastguide import reference

    row, weights = plan.table[1].double(), plan.weights[1] if found.weights is None else None
    weights = found.weights[1] if weights is None else weights
    known = (found.deltas, found.factor, found.factored)
    branches = [branch.double() for branch in found.branches]
    return (reference.combine(x.double(), branches, weights.double(), row, *known) - a * x) / b


def predictions():
    """A model, x, and what it predicts under the condition, another one and none."""
    torch.manual_seed(3)
    model = model_of(dit())
    x = torch.randn(2, *model.shape)
    t = torch.full((2,), 600.0)
    with torch.no_grad():
        found = [
            model.net(x, t / 1000, one).double() for one in (COND, OTHER, torch.tensor([5, 5]))
        ]
    return model, x, *found


def test_text_and_image():
    model, x, c, i, u = predictions()
    want = u + 1.5 * (i - u) + 7.5 * (c - i)
    torch.testing.assert_close(
        guided(model, fg.TextImageCFG(7.5), x, OTHER), want, rtol=1e-4, atol=1e-5
    )
    same = guided(model, fg.TextImageCFG(3.0, 3.0), x, OTHER)
    torch.testing.assert_close(same, u + 3.0 * (c - u), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weight", [0.0, 1.0, 2.5])
def test_perp_neg(weight):
    model, x, c, n, u = predictions()
    e, o = (c - u).flatten(1), (n - u).flatten(1)
    across = o - (o * e).sum(1, keepdim=True) / (e * e).sum(1, keepdim=True) * e
    want = u + 4.0 * (e - weight * across).view_as(c)
    got = guided(model, fg.PerpNeg(4.0, weight), x, OTHER)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    if weight:
        assert (want - u - 4.0 * (c - u)).abs().max() > 1e-2


def test_errors():
    model, labels = model_of(dit()), torch.tensor([0, 1])
    for bad, match in (
        (lambda: fg.PerpNeg(1.0), "scale is 1"),
        (lambda: fg.SLG(2.0, on="negative"), "needs no weight"),
        (lambda: fg.SLG(layers=1), "needs a weight"),
        (lambda: fg.SLG(2.0, on="positive"), "on is 'positive'"),
    ):
        with pytest.raises(ValueError, match=match):
            bad()
    without = fg.Model(model.net, fg.Flow(), model.prediction, model.shape)
    with pytest.raises(ValueError, match="null condition beside the negative one"):
        fg.sample(without, labels, fg.PerpNeg(3.0), negative=labels, steps=2, seeds=[0, 1])


@pytest.mark.parametrize("rows", ["batched", "sequential"])
def test_layers_left_out_of_the_negative_rows(rows):
    """As CFG away from a network without them; in a part of the run, and without a further row."""
    model, layer = model_of(dit()), "blocks.2"
    weak = dit()
    run = {"steps": 4, "seeds": [1, 2], "spacing": fg.linspace()}

    class Skipping(torch.nn.Module):
        def forward(self, x, t, cond):
            state = (x, t)
            for stage in weak.stages:
                if layer not in stage.layers:
                    state = stage.run(state, cond)
            return state

    null = fg.Model(Skipping(), fg.Flow(), model.prediction, model.shape, null=5)
    some = fg.interval(0.0, 0.5, over="step")

    class Both(torch.nn.Module):
        """Clean for the condition; for none the network without the layer, early on."""

        def __init__(self, always):
            super().__init__()
            self.always = always

        def forward(self, x, t, cond):
            early = self.always or bool(t[0] > 0.3)
            weak_one = null.net(x, t, cond) if early else model.net(x, t, cond)
            return torch.where((cond == 5).view(-1, 1, 1, 1), weak_one, model.net(x, t, cond))

    for schedule, always in ((None, True), (some, False)):
        slg = fg.SLG(layers=layer, on="negative", schedule=schedule)
        guidance = fg.CFG(3.0) + slg
        sampler = fg.Sampler(
            model, guidance, rows=rows, **{k: run[k] for k in ("steps", "spacing")}
        )
        got = sampler(COND, run["seeds"])
        both = fg.Model(Both(always), fg.Flow(), model.prediction, model.shape, null=5)
        want = fg.sample(both, COND, fg.CFG(3.0), **run)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
        plain = fg.sample(model, COND, fg.CFG(3.0), **run)
        assert (got - plain).abs().max() > 1e-3
        assert [len(p.branches) for p in sampler.plan.patterns] == [2] * len(sampler.plan.patterns)
